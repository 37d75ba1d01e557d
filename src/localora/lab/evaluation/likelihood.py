"""Likelihood of given completions: held-out loss, and the choice of a multiple-choice question."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from localora.lab.data.batches import IGNORED, Collator, Encoded, prompt_ids, token_ids
from localora.lab.data.example import DataError, Example
from localora.lab.model.base import device_of
from localora.lifecycle.passes import evaluating

Progress = Callable[[int, int], None]  # (done, total)


def mean_loss(model: nn.Module, encoded: Sequence[Encoded], batch_size: int) -> float:
    """Negative log-likelihood in nats, averaged over all label tokens of `encoded` (not over batches).

    Runs in eval mode without gradients and restores the model's mode.

    Raises:
        DataError: `encoded` holds no label token.
    """
    sums, counts = completion_losses(model, encoded, batch_size)
    return sum(sums) / sum(counts)


def completion_losses(
    model: nn.Module, encoded: Sequence[Encoded], batch_size: int, progress: Progress | None = None
) -> tuple[list[float], list[int]]:
    """Of each sequence the negative log-likelihood of its label tokens in nats, summed, and their number.

    Raises:
        DataError: `encoded` holds no label token.
    """
    # The first position is predicted from nothing, so its label does not count.
    counts = [sum(label != IGNORED for label in row["labels"][1:]) for row in encoded]
    if sum(counts) == 0:
        raise DataError("no token to measure a loss on; the held-out data are empty")
    return _losses(model, encoded, batch_size, progress).tolist(), counts


def choose(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch_size: int,
    progress: Progress | None = None,
) -> list[int]:
    """For each example the index of its likeliest choice: largest log-likelihood per byte of the choice.

    Per byte, not per token, so that the tokenizer's cuts do not matter. `batch_size` and `progress` count choices.
    """
    rows: list[Encoded] = []
    lengths: list[int] = []
    for example in examples:
        prompt = prompt_ids(example, tokenizer)
        for choice in example.choices:
            ids = token_ids(choice, tokenizer)
            rows.append({"input_ids": prompt + ids, "labels": [IGNORED] * len(prompt) + ids})
            lengths.append(len(choice.strip().encode()))
    scores = -_losses(model, rows, batch_size, progress) / torch.tensor(lengths, dtype=torch.float64)
    of_example = scores.split([len(example.choices) for example in examples])
    return [int(choice_scores.argmax()) for choice_scores in of_example]


def _losses(model: nn.Module, encoded: Sequence[Encoded], batch_size: int, progress: Progress | None = None) -> Tensor:
    """Summed negative log-likelihood of each row's labels, float64 `(rows,)`; batches hold similar lengths."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]), reverse=True)
    losses = torch.zeros(len(encoded), dtype=torch.float64)
    collate = Collator(pad_id=0)  # masked, so any id will do
    device = device_of(model)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = {name: tensor.to(device) for name, tensor in collate([encoded[i] for i in rows]).items()}
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch, use_cache=False).logits[:, :-1]
            counted = labels != IGNORED
            loss = torch.zeros(labels.shape, dtype=torch.float64)
            loss[counted.cpu()] = cross_entropy(
                logits[counted].float(), labels[counted], reduction="none"
            ).double().cpu()  # fmt: skip
            losses[rows] = loss.sum(1)
            if progress is not None:
                progress(start + len(rows), len(order))
    return losses
