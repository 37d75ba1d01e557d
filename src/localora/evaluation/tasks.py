"""Published tasks, measured: accuracy with its interval, the likelihood of the reference answers, every verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.data.batches import encode_examples
from localora.data.example import Example, Scorer, content_hash
from localora.data.published.load import load_published
from localora.data.published.registry import TaskName, parse_tasks
from localora.data.split import subset
from localora.evaluation.intervals import bootstrap_ratio, wilson
from localora.evaluation.likelihood import completion_losses
from localora.evaluation.sandbox import Sandbox
from localora.evaluation.score import CODE_IS_OFF, HOW_TO_ALLOW, evaluate_task

Progress = Callable[[str, int, int], None]  # (task, done, total)


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


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    data_folder: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    max_length: int = 1024,
    allow_code_execution: bool = False,
    progress: Progress | None = None,
) -> list[TaskResult]:
    """Measure `model` on the test split of each task, zero-shot, and leave the model as it was.

    Args:
        tasks: NAME or NAME:PROTOCOL, NAME a task or a family (see data/published/registry.py).
        data_folder: of local files, `FAMILY/NAME_test.jsonl`; None reads the Hub.
        limit: at most so many items a task, drawn by `seed` and the same for every model.
        max_length: tokens; a longer reference is cut (its prompt first).
        allow_code_execution: run generated code in the sandbox. Without, code tasks have their likelihood alone.

    Raises:
        DataError: unknown tasks or unusable data; all are read before the first is measured.
        SandboxError: code is to be run, and this system has not the means to contain it.
    """
    loaded = [(name, *load_published(name, "test", data_folder)) for name in parse_tasks(tasks)]
    runs_code = allow_code_execution and any(scorer is Scorer.code for _, _, scorer in loaded)
    sandbox = Sandbox() if runs_code else None
    results = []
    for name, examples, scorer in loaded:
        start = time.perf_counter()
        chosen = subset(examples, limit, seed)
        sums, counts = completion_losses(model, encode_examples(chosen, tokenizer, max_length), batch_size)
        items, metric = _verdicts(
            model, tokenizer, name, chosen, scorer, sandbox, batch_size, max_new_tokens, progress
        )  # fmt: skip
        right = [verdict for verdict, _ in items if verdict is not None]
        results.append(
            TaskResult(
                task=str(name),
                family=name.task.family,
                metric=metric,
                value=sum(right) / len(right) if right else None,
                interval=wilson(sum(right), len(right)) if right else None,
                reference_loss=sum(sums) / sum(counts),
                reference_interval=bootstrap_ratio(sums, counts),
                items=[
                    Item(example.id, verdict, output, nats, tokens)
                    for example, (verdict, output), nats, tokens in zip(chosen, items, sums, counts, strict=True)
                ],
                data_hash=content_hash(chosen),
                seconds=time.perf_counter() - start,
                note=None if right else HOW_TO_ALLOW,
                protections=sandbox.protections if sandbox is not None and scorer is Scorer.code else [],
            )
        )
    return results


def _verdicts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: TaskName,
    examples: Sequence[Example],
    scorer: Scorer,
    sandbox: Sandbox | None,
    batch_size: int,
    max_new_tokens: int,
    progress: Progress | None,
) -> tuple[list[tuple[bool | None, str]], str]:
    """(right, output) of each example, and the metric's name."""
    if scorer is Scorer.code and sandbox is None:
        return [(None, "")] * len(examples), CODE_IS_OFF
    score = evaluate_task(
        model,
        tokenizer,
        examples,
        scorer,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        sandbox=sandbox,
        progress=None if progress is None else lambda done, total: progress(str(name), done, total),
    )
    return list(zip(score.items, score.outputs, strict=True)), score.name
