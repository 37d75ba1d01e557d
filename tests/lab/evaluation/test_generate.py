from __future__ import annotations

import pytest
import torch

from localora.lab.data.batches import token_ids
from localora.lab.data.example import Example
from localora.lab.evaluation.generate import generate

PROMPTS = ["a", "a longer prompt", "two", "the longest prompt of them all", "mid size"]
EXAMPLES = [Example(str(i), prompt, "x") for i, prompt in enumerate(PROMPTS)]


def greedy(model, tokenizer, prompt: str, steps: int, stop_at: int = 1) -> list[int]:
    """Token by token, whole sequence anew, one row, no padding."""
    ids = token_ids(prompt, tokenizer)
    written: list[int] = []
    model.eval()
    with torch.no_grad():
        while len(written) < steps and (not written or written[-1] != stop_at):
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    model.train()
    return written


def decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_equal_single_rows_in_the_given_order(model, tokenizer, batch_size):
    expected = [decode(tokenizer, greedy(model, tokenizer, prompt, 12)) for prompt in PROMPTS]
    assert len(set(expected)) == len(expected)
    done = []
    texts = generate(
        model, tokenizer, EXAMPLES, batch_size=batch_size, max_new_tokens=12, progress=lambda *now: done.append(now)
    )
    assert texts == expected
    assert done[-1] == (5, 5)
    assert model.training


def test_rows_stop_at_eos_each_for_itself(model, tokenizer):
    third = [greedy(model, tokenizer, prompt, 3)[2] for prompt in PROMPTS]
    model.generation_config.eos_token_id = [third[1]]
    expected = [greedy(model, tokenizer, prompt, 12, stop_at=third[1]) for prompt in PROMPTS]
    assert len(expected[1]) <= 3
    assert max(map(len, expected)) == 12
    texts = generate(model, tokenizer, EXAMPLES, batch_size=5, max_new_tokens=12)
    # An EOS that is not the tokenizer's special token stays in the text; what follows it does not.
    assert texts == [decode(tokenizer, ids) for ids in expected]


def test_rows_stop_at_the_pattern_each_for_itself(model, tokenizer):
    whole = generate(model, tokenizer, EXAMPLES, batch_size=5, max_new_tokens=12)
    pattern = f"(?s)^.{{4}}{''.join(f'[{chr(92)}x{ord(c):02x}]' for c in whole[3][4] if ord(c) < 256)}"
    texts = generate(model, tokenizer, EXAMPLES, batch_size=5, max_new_tokens=12, stop_pattern=pattern)
    assert texts[3] == whole[3][:5]
    others = [i for i in range(5) if whole[i][4:5] != whole[3][4]]
    assert others
    assert all(texts[i] == whole[i] for i in others)


@pytest.mark.filterwarnings("error")
def test_the_models_own_sampling_settings_are_put_aside(model, tokenizer):
    expected = generate(model, tokenizer, EXAMPLES, batch_size=5, max_new_tokens=8)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.top_p = 0.9
    assert generate(model, tokenizer, EXAMPLES, batch_size=5, max_new_tokens=8) == expected
