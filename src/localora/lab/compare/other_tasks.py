"""Tasks that a final run was not trained on: published ones, measured after it, and watched ones, before and after."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.compare.plan import Published
from localora.lab.compare.store import Tasks, Watched
from localora.lab.data.batches import encode_examples
from localora.lab.data.load import load_task
from localora.lab.data.split import subset
from localora.lab.evaluation.measure import measure_task
from localora.lab.evaluation.tasks import load_tasks, measure_tasks
from localora.lab.model.adapted import Loaded, load_adapted
from localora.lab.recipe.data_spec import DataSpec
from localora.lab.recipe.schema import Recipe
from localora.lab.training.folder import RunFolder
from localora.lab.training.record import Evaluation


def measure_published(recipe: Recipe, folder: RunFolder, published: Published) -> Tasks:
    """All is read from its files, so that what is measured is what was saved.

    Raises:
        DataError, ModelError, SandboxError: as in `localora evaluate`.
        TrainingError: a loss is not finite.
    """
    tasks = load_tasks(published.tasks, published.data, published.examples)
    evaluation = recipe.evaluation.model_copy(update={"max_new_tokens": published.max_new_tokens})
    loaded = load_result(recipe, folder)
    found = measure_tasks(loaded.model, loaded.tokenizer, tasks, evaluation)
    return Tasks(measured=published, tasks={str(task.name): measured for task, measured, *_ in found})


def measure_watched(
    recipe: Recipe, folder: RunFolder, watch: Mapping[str, DataSpec], before: Mapping[str, Evaluation]
) -> Watched:
    """`before` is what another run has measured of the base model already; what it lacks is measured here.

    Generated code is not run: code tasks have their loss alone.

    Raises:
        DataError, ModelError: as their loaders say.
        TrainingError: a loss is not finite.
    """
    missing = {name: data for name, data in watch.items() if name not in before}
    known = dict(before)
    if missing:
        base = load_adapted(recipe.model.name, dtype=getattr(torch, recipe.model.dtype))
        known |= _measure(base.model, base.tokenizer, recipe, missing)
        del base
    loaded = load_result(recipe, folder)
    after = _measure(loaded.model, loaded.tokenizer, recipe, watch)
    return Watched(tasks=dict(watch), before={name: known[name] for name in watch}, after=after)


def load_result(recipe: Recipe, folder: RunFolder) -> Loaded:
    """What a run made: the base model with its adapter, or the model that was trained as a whole."""
    has_adapter = folder.result == folder.adapter
    base = recipe.model.name if has_adapter else None
    dtype = getattr(torch, recipe.model.dtype) if has_adapter else torch.float32  # in which every weight was trained
    return load_adapted(str(folder.result), base, dtype)


def _measure(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    watch: Mapping[str, DataSpec],
) -> dict[str, Evaluation]:
    found = {}
    for name, data in watch.items():
        task = load_task(data)
        questions = subset(task.test, recipe.evaluation.examples, data.seed)
        encoded = encode_examples(questions, tokenizer, recipe.training.max_length)
        found[name], _ = measure_task(model, tokenizer, encoded, questions, task.scorer, recipe.evaluation)
    return found
