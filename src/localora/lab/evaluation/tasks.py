"""Published tasks, measured: accuracy with its interval, the likelihood of the reference answers, every verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.data.batches import encode_examples
from localora.lab.data.example import Example, Scorer, content_hash
from localora.lab.data.published.load import load_published
from localora.lab.data.published.registry import TaskName, parse_tasks
from localora.lab.data.split import subset
from localora.lab.evaluation.intervals import bootstrap_ratio, wilson
from localora.lab.evaluation.likelihood import completion_losses
from localora.lab.evaluation.sandbox import Sandbox
from localora.lab.evaluation.score import CODE_IS_OFF, HOW_TO_ALLOW, evaluate_task

Progress = Callable[[str, int, int], None]  # (what, done, total)
MAX_LENGTH = 1024  # tokens


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
    loaded = [(name, *load_published(name, "test", data_folder)) for name in parse_tasks(tasks)]
    return [LoadedTask(name, subset(examples, limit, seed), scorer) for name, examples, scorer in loaded]


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[LoadedTask],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    max_length: int = MAX_LENGTH,
    allow_code_execution: bool = False,
    progress: Progress | None = None,
) -> list[TaskResult]:
    """Measure `model` on each task, zero-shot, and leave the model as it was.

    Args:
        max_length: tokens; a longer reference is cut (its prompt first).
        allow_code_execution: run generated code in the sandbox. Without, code tasks have their likelihood alone.
        progress: `(what, done, total)`: of a task's references first, then of its answers.

    Raises:
        DataError: a task without items.
        SandboxError: code is to be run, and this system has not the means to contain it.
    """
    runs_code = allow_code_execution and any(task.scorer is Scorer.code for task in tasks)
    sandbox = Sandbox() if runs_code else None
    return [
        _evaluate(model, tokenizer, task, sandbox, batch_size, max_new_tokens, max_length, progress) for task in tasks
    ]


def _evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: LoadedTask,
    sandbox: Sandbox | None,
    batch_size: int,
    max_new_tokens: int,
    max_length: int,
    progress: Progress | None,
) -> TaskResult:
    start = time.perf_counter()
    encoded = encode_examples(task.examples, tokenizer, max_length)
    sums, counts = completion_losses(model, encoded, batch_size, _of(f"{task.name}, references", progress))
    items, metric = _verdicts(
        model, tokenizer, task, sandbox, batch_size, max_new_tokens, _of(str(task.name), progress)
    )  # fmt: skip
    right = [verdict for verdict, _ in items if verdict is not None]
    return TaskResult(
        task=str(task.name),
        family=task.name.task.family,
        metric=metric,
        value=sum(right) / len(right) if right else None,
        interval=wilson(sum(right), len(right)) if right else None,
        reference_loss=sum(sums) / sum(counts),
        reference_interval=bootstrap_ratio(sums, counts),
        items=[
            Item(example.id, verdict, output, nats, tokens)
            for example, (verdict, output), nats, tokens in zip(task.examples, items, sums, counts, strict=True)
        ],
        data_hash=content_hash(task.examples),
        seconds=time.perf_counter() - start,
        note=None if right else HOW_TO_ALLOW,
        protections=sandbox.protections if sandbox is not None and task.scorer is Scorer.code else [],
    )


def _of(what: str, progress: Progress | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)


def _verdicts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: LoadedTask,
    sandbox: Sandbox | None,
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[tuple[bool | None, str]], str]:
    """(right, output) of each example, and the metric's name."""
    if task.scorer is Scorer.code and sandbox is None:
        return [(None, "")] * len(task.examples), CODE_IS_OFF
    score = evaluate_task(
        model,
        tokenizer,
        task.examples,
        task.scorer,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        sandbox=sandbox,
        progress=progress,
    )
    return list(zip(score.items, score.outputs, strict=True)), score.name
