"""The data model: one example, and a task of three splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from localora.errors import LocaloraError


class DataError(LocaloraError, ValueError):
    """Data that cannot be used as it is; the message names the file, line or example and the remedy."""


class Scorer(StrEnum):
    """How a task is scored."""

    exact_match = "exact_match"  # final number of the generated text against Example.answer
    multiple_choice = "multiple_choice"  # likeliest of Example.choices against Example.answer_index
    answer_word = "answer_word"  # first of Example.choices in the generated text against Example.answer_index
    code = "code"  # Example.tests run after prompt + generated text
    none = "none"  # loss only


@dataclass(frozen=True)
class Example:
    """One item: what the model reads, what it should write, how it is scored.

    The text is `prompt + completion`, verbatim. With `messages`, the text is the tokenizer's chat template
    over them, and `prompt` and `completion` are plain renderings for people and for overlap checks.
    """

    id: str
    prompt: str
    completion: str
    answer: str | None = None  # exact match: the final answer
    choices: tuple[str, ...] = ()  # multiple choice: the completions to compare by likelihood
    answer_index: int | None = None  # multiple choice: position of the right one
    tests: str | None = None  # code: unit tests, to run after prompt + completion
    messages: tuple[Mapping[str, Any], ...] | None = None  # chat turns, each with `role` and `content`


@dataclass(frozen=True)
class TaskData:
    """A task: three disjoint splits, how they are scored, and the SHA-256 of each split's contents."""

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    scorer: Scorer
    hashes: dict[str, str] = field(default_factory=dict)  # keys train, validation, test


def item_id(example: Example) -> str:
    """What an item is called in records: 12 digits of a hash of its contents, whatever file or order it came from."""
    return content_hash([replace(example, id="")])[:12]


def content_hash(examples: Iterable[Example]) -> str:
    """SHA-256 over the examples in order: equal exactly when the split is the same."""
    sha = hashlib.sha256()
    for example in examples:
        sha.update(json.dumps(asdict(example), sort_keys=True, ensure_ascii=False).encode())
        sha.update(b"\n")
    return sha.hexdigest()
