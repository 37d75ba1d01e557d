"""lm-evaluation-harness on a model in memory. Needs the extra `eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.data.example import DataError
from localora.lifecycle.evaluating import evaluating


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
) -> dict[str, Any]:
    """Measure `model` in the harness, and leave the model as it was.

    Args:
        tasks: the harness's names, or task configs as it takes them.
        limit: the first so many items a task, at most.

    Returns:
        What the harness returns: metrics by task in `results`, and each item in `samples`.

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
    return results


def task_values(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A dict a task, as JSON takes it: the metrics as the harness calls them, and the numbers of each item."""
    return [
        {
            "task": task,
            **results["results"][task],
            "items": [{key: x for key, x in sample.items() if isinstance(x, int | float)} for sample in samples],
        }
        for task, samples in results["samples"].items()
    ]
