"""Examples to token sequences with masked prompts, and sequences to padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from localora.lab.data.example import DataError, Example

IGNORED = -100  # torch's and transformers' label of a position without loss

Encoded = dict[str, list[int]]  # input_ids, labels: equal length


def _whole(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], int]:
    """Token ids and labels before any cut, and how many tokens no cut may take: BOS, where there is one."""
    input_ids = _leading_tokens(example, tokenizer)
    labels = [IGNORED] * len(input_ids)
    for text, trained in _segments(example, tokenizer):
        ids = token_ids(text, tokenizer)
        input_ids += ids
        labels += ids if trained else [IGNORED] * len(ids)
    if example.messages is None:  # a chat template ends turns by itself
        input_ids.append(_eos(tokenizer))
        labels.append(_eos(tokenizer))
    leading = int(input_ids[0] == tokenizer.bos_token_id and labels[0] == IGNORED)  # a chat template may write it too
    return input_ids, labels, leading


def _cut(input_ids: list[int], labels: list[int], leading: int, example: Example, max_length: int) -> Encoded:
    prompt = next((i for i, label in enumerate(labels) if label != IGNORED), len(labels))
    excess = len(input_ids) - max_length
    if prompt > leading and excess >= prompt - leading:
        raise DataError(
            f"example {example.id!r} has {len(input_ids)} tokens, {prompt} of them prompt: a cut to max_length "
            f"{max_length} would leave no prompt; raise max_length or drop the example"
        )
    cut = max(0, excess) if prompt > leading else 0
    encoded = {
        "input_ids": [*input_ids[:leading], *input_ids[leading + cut :]][:max_length],
        "labels": [*labels[:leading], *labels[leading + cut :]][:max_length],
    }
    if all(label == IGNORED for label in encoded["labels"][1:]):
        raise DataError(
            f"example {example.id!r} has no token to train on within max_length {max_length} "
            f"({len(input_ids)} tokens, {prompt} of them prompt); raise max_length or drop the example"
        )
    return encoded


class Sequences(list[Encoded]):
    """Encoded examples, a Trainer's data set. `whole` holds each one's number of tokens before `max_length` cut it."""

    def __init__(self, encoded: Iterable[Encoded], whole: Iterable[int]) -> None:
        super().__init__(encoded)
        self.whole = list(whole)

    @property
    def cut(self) -> int:
        """How many lost tokens to `max_length`."""
        return sum(len(row["input_ids"]) < tokens for row, tokens in zip(self, self.whole, strict=True))

    @property
    def longest(self) -> int:
        """Tokens of the longest, as it is."""
        return max(len(row["input_ids"]) for row in self)


def encode_examples(examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Sequences:
    """Token ids of prompt + completion + EOS, and labels that are IGNORED on the prompt.

    A chat example is rendered with the tokenizer's template; every assistant turn is trained on. A sequence longer than
    `max_length` loses the start of its prompt, but not BOS, or where it never had a prompt the end of its text.

    Raises:
        DataError: no examples; nothing of a prompt would be left, or no position carries a loss (names the example);
            or a chat example and no chat template.
    """
    encoded, whole = [], []
    for example in examples:
        input_ids, labels, leading = _whole(example, tokenizer)
        encoded.append(_cut(input_ids, labels, leading, example, max_length))
        whole.append(len(input_ids))
    if not encoded:
        raise DataError("no examples to encode; the data set or the split is empty")
    return Sequences(encoded, whole)


def prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of what the model reads before it writes: the prompt, or all turns before the last.

    Raises:
        DataError: a chat example and no chat template.
    """
    text = example.prompt
    if example.messages is not None:
        text = _render(example, tokenizer, len(example.messages) - 1, True)
    return _leading_tokens(example, tokenizer) + token_ids(text, tokenizer)


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the text alone, without BOS or EOS."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class Collator:
    """Right-pads to the longest: input_ids with `pad_id`, labels with IGNORED, attention_mask with 0.

    Trainer's `data_collator`; build it with `Collator(tokenizer.pad_token_id)`.
    """

    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        """Three int64 tensors `(rows, longest)`."""
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        labels = [torch.as_tensor(row["labels"], dtype=torch.long) for row in rows]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }


def _segments(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """The text in order, cut where training on it begins or ends: (text, trained on)."""
    if example.messages is None:
        return [(example.prompt, False), (example.completion, True)]
    whole = _render(example, tokenizer, len(example.messages), False)
    segments, at = [], 0
    for i, turn in enumerate(example.messages):
        if turn["role"] != "assistant":
            continue
        before, after = _render(example, tokenizer, i, True), _render(example, tokenizer, i + 1, False)
        if not (whole.startswith(after) and after.startswith(before)):
            raise DataError(
                f"example {example.id!r}: the chat template changes earlier turns when later ones are added, so "
                "the assistant's turns cannot be told apart; keep one assistant turn per example"
            )
        segments += [(whole[at : len(before)], False), (whole[len(before) : len(after)], True)]
        at = len(after)
    return segments


def _render(example: Example, tokenizer: PreTrainedTokenizerBase, turns: int, generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            f"example {example.id!r} is a chat, and the tokenizer of {tokenizer.name_or_path!r} has no chat "
            "template; use an instruction-tuned model or prompt/completion data"
        )
    messages: list[dict[str, Any]] = [dict(turn) for turn in (example.messages or ())[:turns]]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    return str(text)


def _leading_tokens(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """BOS where the tokenizer puts it before plain text; a chat template writes its own."""
    if example.messages is not None or tokenizer.bos_token_id is None:
        return []
    first = list(tokenizer("")["input_ids"][:1])
    return first if first == [tokenizer.bos_token_id] else []


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no EOS token, so a model could not learn to "
            "stop; set tokenizer.eos_token"
        )
    return int(tokenizer.eos_token_id)
