"""lm-evaluation-harness on a model in memory, and what it measured. Needs the extra `eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.data.example import DataError
from localora.lab.evaluation.intervals import Z, wilson
from localora.lifecycle.evaluating import evaluating


@dataclass(frozen=True)
class HarnessScore:
    """One metric of one task.

    `interval` (95 %) is Wilson's where items are right or wrong, else normal from the harness's standard error; None
    where it gives none. `items` holds the value of each item, by its number in the harness.
    """

    task: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    count: int
    items: dict[str, float]


def import_lm_eval() -> ModuleType:
    """The harness.

    Raises:
        DataError: it is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise DataError("lm-evaluation-harness is not installed: pip install 'localora[eval]'") from error
    return lm_eval


def evaluate_with_lm_eval(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    limit: int | None = None,
    batch_size: int = 16,
) -> list[HarnessScore]:
    """Measure `model` in the harness, and leave the model as it was.

    Args:
        tasks: the harness's names, or task configs as it takes them.
        limit: the first so many items a task, at most.

    Raises:
        DataError: the harness is not installed, or knows no such task.
    """
    harness = import_lm_eval()
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = [task for task in tasks if isinstance(task, str)]
    manager = TaskManager(include_defaults=bool(names))  # its own ten thousand files take seconds
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise DataError(
            f"lm-evaluation-harness knows no task {', '.join(unknown)}; `lm_eval ls tasks` lists those it has"
        )
    with evaluating(model):
        results: dict[str, Any] = harness.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            limit=limit,
            task_manager=manager,
            bootstrap_iters=1000,
        )
    return [score for task in results["samples"] for score in read_scores(task, results)]


def read_scores(task: str, results: Mapping[str, Any]) -> list[HarnessScore]:
    """Of each metric and filter: keys are "metric,filter", and "metric_stderr,filter" the standard errors."""
    found = results["results"][task]
    scores = []
    for key, value in found.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr"):
            continue
        samples = [sample for sample in results["samples"][task] if sample["filter"] == chosen]
        items = {
            str(sample["doc_id"]): float(sample[metric])
            for sample in samples
            if isinstance(sample.get(metric), int | float)
        }
        error = found.get(f"{metric}_stderr,{chosen}")
        scores.append(
            HarnessScore(
                task=task,
                metric=metric if chosen == "none" else f"{metric} ({chosen})",
                value=float(value),
                interval=_interval(float(value), error, list(items.values()), len(samples)),
                count=len(samples),
                items=items,
            )
        )
    return scores


def _interval(value: float, error: Any, items: list[float], count: int) -> tuple[float, float] | None:
    if len(items) == count and set(items) <= {0.0, 1.0}:
        return wilson(round(sum(items)), count)
    return (value - Z * error, value + Z * error) if isinstance(error, float) else None  # else the text "N/A"
