"""Likelihood of given completions: held-out loss, and the choice of a multiple-choice question."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from localora.data.batches import Encoded
from localora.data.example import Example


def mean_loss(model: nn.Module, encoded: Sequence[Encoded], batch_size: int) -> float:
    """Negative log-likelihood in nats, averaged over all label tokens of `encoded` (not over batches).

    Runs in eval mode without gradients and restores the model's mode.
    """
    raise NotImplementedError


def choose(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[int]:
    """For each example the index of its likeliest choice: largest log-likelihood per byte of the choice's text."""
    raise NotImplementedError
