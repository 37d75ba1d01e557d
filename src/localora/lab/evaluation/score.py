"""Task scores: exact match, answer words, multiple choice, code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.data.example import DataError, Example, Scorer
from localora.lab.evaluation import code
from localora.lab.evaluation.answers import first_word, matches, word_pattern
from localora.lab.evaluation.generate import generate
from localora.lab.evaluation.likelihood import choose
from localora.lab.evaluation.sandbox import Sandbox

ANSWER_COMPLETE = r"####[ \t]*[^\n]*\S[^\n]*\n"  # a marked answer, and the line has ended
CODE_IS_OFF = "pass@1 (not run)"
HOW_TO_ALLOW = "running generated code is off; allow it with --allow-code-execution (evaluation.allow_code_execution)"


@dataclass(frozen=True)
class Score:
    """Which items were right, and what the model answered, in the examples' order."""

    name: str
    items: list[bool]
    outputs: list[str]

    @property
    def value(self) -> float:
        return sum(self.items) / len(self.items)


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    scorer: Scorer,
    *,
    batch_size: int,
    max_new_tokens: int,
    sandbox: Sandbox | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score `examples`; `progress(done, total)` is called as items are finished. Code runs in `sandbox`, or not at all.

    Raises:
        DataError: no examples, Scorer.none, code without a sandbox, or examples without what the scorer needs (names
            the example).
        SandboxError: the sandbox can no longer protect.
    """
    _check(examples, scorer, sandbox)
    if scorer is Scorer.multiple_choice:
        chosen = choose(model, tokenizer, examples, batch_size, progress)
        right = [index == example.answer_index for index, example in zip(chosen, examples, strict=True)]
        answers = [example.choices[index] for index, example in zip(chosen, examples, strict=True)]
        return Score("multiple choice accuracy", right, answers)
    texts = generate(
        model,
        tokenizer,
        examples,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        stop_pattern=_stop_pattern(examples, scorer),
        progress=progress,
    )
    pairs = list(zip(texts, examples, strict=True))
    if scorer is Scorer.exact_match:
        return Score("exact match", [matches(text, str(e.answer)) for text, e in pairs], texts)
    if scorer is Scorer.answer_word:
        right = [first_word(text, e.choices) == e.answer_index for text, e in pairs]
        return Score("answer word accuracy", right, texts)
    assert sandbox is not None
    verdicts = sandbox.run_all([code.sample(e, text) for text, e in pairs])
    outputs = [f"{text}\n# {verdict.reason}" for text, verdict in zip(texts, verdicts, strict=True)]
    return Score("pass@1", [verdict.passed for verdict in verdicts], outputs)


def _stop_pattern(examples: Sequence[Example], scorer: Scorer) -> str:
    """One for all examples: a task's examples are of one kind."""
    if scorer is Scorer.answer_word:
        return word_pattern(sorted({word for example in examples for word in example.choices}, reverse=True))
    return ANSWER_COMPLETE if scorer is Scorer.exact_match else rf"\S[\s\S]*(?:{code.stop_pattern(examples[0])})"


def _check(examples: Sequence[Example], scorer: Scorer, sandbox: Sandbox | None) -> None:
    if not examples:
        raise DataError("no examples to score; the split is empty")
    if scorer is Scorer.none:
        raise DataError("this task has no scorer: it is measured by its loss only (mean_loss)")
    if scorer is Scorer.code and sandbox is None:
        raise DataError(HOW_TO_ALLOW)
    for example in examples:
        if scorer is Scorer.exact_match and example.answer is None:
            raise DataError(f"example {example.id!r} has no answer to match")
        if scorer in (Scorer.multiple_choice, Scorer.answer_word) and not (
            example.choices and example.answer_index is not None
        ):
            raise DataError(f"example {example.id!r} has no choices, or no answer_index")
        if scorer is Scorer.code and not example.tests:
            raise DataError(f"example {example.id!r} has no tests to run")
        if scorer is Scorer.code:
            code.sample(example, "")  # raises now, not after generation
