"""Greedy completions of many prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.data.example import Example


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int,
    max_new_tokens: int,
    stop_pattern: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """The greedy completion of each example, in the given order, without EOS.

    Batches hold prompts of similar length, left-padded. A row stops at EOS, or once its generated text matches the
    regular expression `stop_pattern`. `progress(done, total)` is called after each batch.
    """
    raise NotImplementedError
