"""Examples to token sequences with masked prompts, and sequences to padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from localora.data.example import Example

IGNORED = -100  # torch's and transformers' label of a position without loss

Encoded = dict[str, list[int]]  # input_ids, labels: equal length


def tokenise(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Token ids of prompt + completion + EOS, and labels that are IGNORED on the prompt.

    A chat example is rendered with the tokenizer's template; every assistant turn is trained on. A sequence longer
    than `max_length` loses the start of its prompt first, then the end of its completion.

    Raises:
        DataError: no position carries a loss (names the example), or a chat example and no chat template.
    """
    raise NotImplementedError


def encode_examples(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Encoded]:
    """:func:`tokenise` over examples; the list serves as a Trainer's data set.

    Raises:
        DataError: as tokenise, or no examples at all.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class Collator:
    """Right-pads sequences to the longest: input_ids with `pad_id`, labels with IGNORED, attention_mask with 0.

    Trainer's `data_collator`; build it with `Collator(tokenizer.pad_token_id)`.
    """

    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        """Three int64 tensors `(rows, longest)`."""
        raise NotImplementedError
