"""Published tasks, measured: accuracy with its interval, the likelihood of the reference answers, every verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from peft import PeftModel
from scipy.stats import binomtest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.data.batches import encode_examples
from localora.lab.data.example import Example, Scorer, content_hash
from localora.lab.data.published.load import load_published
from localora.lab.data.published.registry import TaskName, parse_tasks
from localora.lab.data.split import subset
from localora.lab.evaluation.measure import Progress, measure_task
from localora.lab.evaluation.sandbox import Sandbox
from localora.lab.evaluation.score import HOW_TO_ALLOW
from localora.lab.recipe.schema import EvaluationSection
from localora.lab.training.record import Evaluation

MAX_LENGTH = 1024  # tokens
_DRAWS = 2000  # of a bootstrap


@dataclass(frozen=True)
class Item:
    """One test item: what was answered, whether that is right (None: not run), and the reference's likelihood."""

    id: str
    right: bool | None
    output: str
    reference_nats: float  # negative log-likelihood of the reference completion, summed over its tokens
    reference_tokens: int


@dataclass(frozen=True)
class TaskResult:
    """What one task says of a model. `value` and `interval` (95 %) are None where code was not run."""

    task: str  # NAME:PROTOCOL
    family: str
    metric: str
    value: float | None
    interval: tuple[float, float] | None
    reference_loss: float  # nats per token over all reference tokens
    reference_interval: tuple[float, float]
    items: list[Item]
    data_hash: str  # SHA-256 of the test examples used
    seconds: float
    note: str | None = None
    protections: list[str] = field(default_factory=list)  # of the sandbox, where code was run

    @property
    def right(self) -> list[bool]:
        """The verdicts alone, in order, for paired comparisons; empty where code was not run."""
        return [item.right for item in self.items if item.right is not None]


@dataclass(frozen=True)
class LoadedTask:
    """The test items of one task, and how they are scored."""

    name: TaskName
    examples: list[Example]
    scorer: Scorer


def load_tasks(
    tasks: Sequence[str], data_folder: str | Path | None = None, limit: int | None = None, seed: int = 0
) -> list[LoadedTask]:
    """The test split of each task.

    Args:
        tasks: NAME or NAME:PROTOCOL, NAME a task or a family (see data/published/registry.py).
        data_folder: of local files, `FAMILY/NAME_test.jsonl`; None reads the Hub.
        limit: at most so many items a task, drawn by `seed` and the same for every model.

    Raises:
        DataError: unknown tasks or unusable data.
    """
    loaded = [(name, *load_published(name, data_folder)) for name in parse_tasks(tasks)]
    return [LoadedTask(name, subset(examples, limit, seed), scorer) for name, examples, scorer in loaded]


def evaluate_tasks(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[LoadedTask],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    allow_code_execution: bool = False,
    progress: Progress | None = None,
) -> list[TaskResult]:
    """Measure `model` on each task, zero-shot, and leave the model as it was.

    Args:
        allow_code_execution: run generated code in the sandbox. Without, code tasks have their likelihood alone.
        progress: `(done, total, what)`: of a task's losses first, then of its answers.

    Raises:
        DataError: a task without items.
        SandboxError: code is to be run, and this system has not the means to contain it.
    """
    evaluation = EvaluationSection(
        batch_size=batch_size, max_new_tokens=max_new_tokens, allow_code_execution=allow_code_execution
    )
    results = []
    for task, found, answers, protections in measure_tasks(model, tokenizer, tasks, evaluation, progress):
        assert found.items is not None
        references = list(zip(found.items.loss_sums, found.items.tokens, strict=True))
        verdicts: list[bool | None] = list(found.right) or [None] * len(references)
        result = TaskResult(
            task=str(task.name),
            family=task.name.task.family,
            metric=str(found.score_name),
            value=found.score,
            interval=wilson(sum(found.right), len(found.right)) if found.right else None,
            reference_loss=found.loss,
            reference_interval=bootstrap_ratio(found.items.loss_sums, found.items.tokens),
            items=[
                Item(example.id, right, answer, *reference)
                for example, right, answer, reference in zip(
                    task.examples, verdicts, answers or [""] * len(references), references, strict=True
                )
            ],
            data_hash=content_hash(task.examples),
            seconds=found.seconds,
            note=None if found.right else HOW_TO_ALLOW,
            protections=protections,
        )
        results.append(result)
    return results


def measure_tasks(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[LoadedTask],
    evaluation: EvaluationSection,
    progress: Progress | None = None,
) -> Iterator[tuple[LoadedTask, Evaluation, list[str], list[str]]]:
    """Of each task what was measured, the answers, and what contained the code that was run.

    A reference of more than MAX_LENGTH tokens is cut, its prompt first.
    """
    runs_code = evaluation.allow_code_execution and any(task.scorer is Scorer.code for task in tasks)
    sandbox = Sandbox() if runs_code else None
    for task in tasks:
        told = progress and partial(_told, progress, str(task.name))
        encoded = encode_examples(task.examples, tokenizer, MAX_LENGTH)
        measured = measure_task(model, tokenizer, encoded, task.examples, task.scorer, evaluation, sandbox, told)
        yield task, *measured, sandbox.protections if sandbox is not None and task.scorer is Scorer.code else []


def _told(progress: Progress, task: str, done: int, total: int, what: str) -> None:
    progress(done, total, f"{task}, {what}")


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share; sound at 0 and at 1, unlike the normal approximation."""
    low, high = binomtest(right, count).proportion_ci(confidence_level=0.95, method="wilson")
    return float(low), float(high)


def bootstrap_ratio(sums: list[float], counts: list[int], seed: int = 0) -> tuple[float, float]:
    """Percentile interval of sum(sums) / sum(counts) over items drawn anew: of a mean per token, say."""
    top, bottom = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(top), size=(_DRAWS, len(top)))
    low, high = np.quantile(top[drawn].sum(1) / bottom[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)
