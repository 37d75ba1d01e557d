from __future__ import annotations

import pytest
import torch

from localora.lab.data.batches import encode_examples, token_ids
from localora.lab.data.example import DataError, Example
from localora.lab.evaluation.likelihood import choose, mean_loss

PROMPTS = ["a", "a longer prompt", "two", "the longest prompt of them all"]
COMPLETIONS = [" yes", " no, not at all", " b", " c d e"]


def log_likelihoods(model, ids: list[int]) -> torch.Tensor:
    """Of each token but the first, one row at a time and unpadded."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    model.train()
    return logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]


def test_mean_loss_weighs_tokens_not_batches(model, tokenizer):
    pairs = list(zip(PROMPTS, COMPLETIONS, strict=True))
    encoded = encode_examples([Example("", p, c) for p, c in pairs], tokenizer, 100)
    losses = torch.cat(
        [-log_likelihoods(model, row["input_ids"])[len(p) - 1 :] for row, p in zip(encoded, PROMPTS, strict=True)]
    )
    assert len(losses) == sum(len(c) + 1 for c in COMPLETIONS)
    for batch_size in (1, 3, 8):
        assert mean_loss(model, encoded, batch_size) == pytest.approx(float(losses.mean()), rel=1e-6)


def test_the_first_label_of_a_sequence_does_not_count(model, tokenizer):
    ids = token_ids("abc", tokenizer)
    encoded = [{"input_ids": ids, "labels": ids}]
    assert mean_loss(model, encoded, 1) == pytest.approx(-float(log_likelihoods(model, ids).mean()), rel=1e-6)


def test_modes_and_gradients_are_left_as_they_were(model, tokenizer):
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    mean_loss(model, encode_examples([Example("", "a", "b")], tokenizer, 10), 1)
    assert [module.training for module in model.modules()] == before
    assert True in before
    assert False in before
    assert all(p.grad is None for p in model.parameters())


def test_nothing_to_measure(model):
    with pytest.raises(DataError, match="no token to measure"):
        mean_loss(model, [], 1)


def test_choose_takes_the_likeliest_per_byte(model, tokenizer):
    sets = [(" a", " bcdefgh", " xy"), (" one", " two"), (" ü", " a longer choice", " z", " q"), (" 12345678", " 1")]
    examples = [
        Example(str(i), prompt, choices[0], choices=choices, answer_index=0)
        for i, (prompt, choices) in enumerate(zip(PROMPTS, sets, strict=True))
    ]
    expected, unnormalised = [], []
    for example in examples:
        sums = []
        for choice in example.choices:
            ids = token_ids(example.prompt + choice, tokenizer)
            sums.append(float(log_likelihoods(model, ids)[len(example.prompt) - 1 :].sum()))
        per_byte = [s / (len(c.encode()) - 1) for s, c in zip(sums, example.choices, strict=True)]
        expected.append(per_byte.index(max(per_byte)))
        unnormalised.append(sums.index(max(sums)))
    assert expected != unnormalised  # or the test could not tell
    done = []
    for batch_size in (1, 4, 32):
        assert choose(model, tokenizer, examples, batch_size, lambda *now: done.append(now)) == expected
    assert done[-1] == (11, 11)
