"""Task scores: exact match, multiple choice, code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.data.example import DataError, Example, Scorer
from localora.evaluation.generate import generate
from localora.evaluation.likelihood import choose

_MARKED_ANSWER = re.compile(r"####[ \t]*(\S[^\n]*)")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_ANSWER_COMPLETE = r"####[ \t]*[^\n]*\S[^\n]*\n"  # a marked answer, and the line has ended


@dataclass(frozen=True)
class Score:
    """`value = sum(items) / count`, and which items were right, in the examples' order."""

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

    Code is not run here: its score is whether the generated text is the reference, white space aside, and its
    name says so.

    Raises:
        DataError: no examples, Scorer.none, or examples without what the scorer needs (names the example).
    """
    _check(examples, scorer)
    if scorer is Scorer.multiple_choice:
        chosen = choose(model, tokenizer, examples, batch_size, progress)
        right = [index == example.answer_index for index, example in zip(chosen, examples, strict=True)]
        return _score("multiple choice accuracy", right)
    texts = generate(
        model,
        tokenizer,
        examples,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        stop_pattern=_ANSWER_COMPLETE if scorer is Scorer.exact_match else None,
        progress=progress,
    )
    pairs = list(zip(texts, examples, strict=True))
    if scorer is Scorer.exact_match:
        return _score("exact match", [same_answer(final_answer(text), str(e.answer)) for text, e in pairs])
    return _score("code text match (not run)", [text.split() == e.completion.split() for text, e in pairs])


def final_answer(text: str) -> str | None:
    """What follows the last "####" of the text, or else its last number; None if it has neither.

    From a marked line with a number in it ("#### 12 apples"), the number.
    """
    marked = _MARKED_ANSWER.findall(text)
    if marked:
        number = _NUMBER.search(marked[-1])
        return number.group() if number else marked[-1].strip()
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def same_answer(found: str | None, expected: str) -> bool:
    """Equal as numbers ("$1,200." is "1200.0"), or else as texts without regard to case."""
    return found is not None and _canonical(found) == _canonical(expected)


def _canonical(answer: str) -> str | Decimal:
    text = answer.strip().rstrip(".").replace(",", "").replace("$", "").rstrip("%").strip()
    return Decimal(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else text.casefold()


def _check(examples: Sequence[Example], scorer: Scorer) -> None:
    if not examples:
        raise DataError("no examples to score; the split is empty")
    if scorer is Scorer.none:
        raise DataError("this task has no scorer: it is measured by its loss only (mean_loss)")
    for example in examples:
        if scorer is Scorer.exact_match and example.answer is None:
            raise DataError(f"example {example.id!r} has no answer to match")
        if scorer is Scorer.multiple_choice and not (example.choices and example.answer_index is not None):
            raise DataError(f"example {example.id!r} has no choices, or no answer_index")


def _score(name: str, items: list[bool]) -> Score:
    return Score(name, sum(items) / len(items), len(items), items)
