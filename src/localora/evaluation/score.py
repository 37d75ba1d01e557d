"""Task scores: exact match, multiple choice, code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.data.example import Example, Scorer


@dataclass(frozen=True)
class Score:
    """A share of right items: `value = sum(items) / count`, and which items were right, in the examples' order."""

    name: str
    value: float
    count: int
    items: list[bool]


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    scorer: Scorer,
    *,
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score `examples`; `progress(done, total)` is called as items are finished.

    Raises:
        DataError: no examples, Scorer.none, or examples without what the scorer needs (names the example).
    """
    raise NotImplementedError
