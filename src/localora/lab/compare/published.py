"""The published tasks of a plan, measured on the adapter, or the model, that a final run left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from transformers import PreTrainedModel

from localora.lab.compare.plan import Published
from localora.lab.compare.store import Tasks, TaskScores
from localora.lab.data.example import Example
from localora.lab.evaluation.tasks import TaskResult, evaluate_tasks, load_tasks
from localora.lab.model.adapted import Loaded, load_adapted
from localora.lab.recipe.schema import Recipe
from localora.lab.training.folder import RunFolder
from localora.lab.training.record import Items


def measure_published(recipe: Recipe, folder: RunFolder, published: Published) -> Tasks:
    """All is read from its files, so that what is measured is what was saved.

    Raises:
        DataError, ModelError, SandboxError: as in `localora evaluate`.
    """
    tasks = load_tasks(published.tasks, published.data, published.examples)
    loaded = load_result(recipe, folder)
    results = evaluate_tasks(
        cast(PreTrainedModel, loaded.model),
        loaded.tokenizer,
        tasks,
        batch_size=recipe.evaluation.batch_size,
        max_new_tokens=published.max_new_tokens,
        allow_code_execution=recipe.evaluation.allow_code_execution,
    )
    return Tasks(
        measured=published, tasks=[_scores(result, task.examples) for result, task in zip(results, tasks, strict=True)]
    )


def load_result(recipe: Recipe, folder: RunFolder) -> Loaded:
    """What a run made: the base model with its adapter, or the model that was trained as a whole."""
    has_adapter = folder.result == folder.adapter
    base = recipe.model.name if has_adapter else None
    dtype = getattr(torch, recipe.model.dtype) if has_adapter else torch.float32  # in which every weight was trained
    return load_adapted(str(folder.result), base, dtype)


def _scores(result: TaskResult, examples: Sequence[Example]) -> TaskScores:
    return TaskScores(
        task=result.task,
        metric=result.metric,
        value=result.value,
        right=result.right,
        loss=result.reference_loss,
        items=Items.of(
            examples,
            [item.reference_nats for item in result.items],
            [item.reference_tokens for item in result.items],
        ),
        data_hash=result.data_hash,
    )
