"""Run lm-evaluation-harness on a model in memory, and read what it measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.data.example import DataError
from localora.lab.evaluation.intervals import Z, wilson
from localora.lifecycle.evaluating import evaluating

TASKS = Path(__file__).parent / "tasks"
OURS = "localora_"  # how the names of our tasks begin


@dataclass(frozen=True)
class HarnessScore:
    """One metric of one task.

    `interval` (95 %) is Wilson's where items are right or wrong, else normal from the harness's standard error; None
    where it gives none. `items` holds the value of each item, by its id (ours) or number (the harness's own tasks).
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
    tasks: Sequence[str],
    *,
    data_folder: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> list[HarnessScore]:
    """Measure `model` in the harness, and leave the model as it was.

    Args:
        tasks: the harness's names, from the Hub, and ours (localora_boolq, localora_commonsense, ...).
        data_folder: of local files for ours; None reads the Hub.
        limit: at most so many items a task. Ours are drawn by `seed`; of its own tasks the harness takes the first.

    Raises:
        DataError: the harness is not installed, or knows no such task; unusable data.
    """
    harness = import_lm_eval()
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    settings = {"data_folder": None if data_folder is None else str(data_folder), "examples": limit, "seed": seed}
    all_ours = all(task.startswith(OURS) for task in tasks)  # else it reads its own ten thousand files, for seconds
    manager = TaskManager(include_path=str(TASKS), include_defaults=not all_ours, metadata=settings)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        ours = ", ".join(name for name in manager.all_tasks if name.startswith(OURS))
        raise DataError(
            f"lm-evaluation-harness knows no task {', '.join(unknown)}; of ours it knows {ours}; "
            "`lm_eval ls tasks` lists its own"
        )
    with evaluating(model):
        results: dict[str, Any] = harness.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            limit=limit,
            task_manager=manager,
            bootstrap_iters=1000,
        )
    return [score for task in results["samples"] for score in _scores(task, results)]


def _scores(task: str, results: dict[str, Any]) -> list[HarnessScore]:
    """Of each metric and filter: keys are "metric,filter", and "metric_stderr,filter" the standard errors."""
    found = results["results"][task]
    scores = []
    for key, value in found.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr"):
            continue
        samples = [sample for sample in results["samples"][task] if sample["filter"] == chosen]
        items = {
            str(sample["doc"]["id"] if task.startswith(OURS) else sample["doc_id"]): float(sample[metric])
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
