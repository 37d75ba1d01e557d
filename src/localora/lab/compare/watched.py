"""What was forgotten: tasks that a plan watches, measured on the base model and on what a final run made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.compare.published import load_result
from localora.lab.compare.store import Watched
from localora.lab.data.batches import encode_examples
from localora.lab.data.load import load_task
from localora.lab.data.split import subset
from localora.lab.model.base import load_base_model
from localora.lab.recipe.data_spec import DataSpec
from localora.lab.recipe.schema import Recipe
from localora.lab.run.setup import measure_task
from localora.lab.training.folder import RunFolder
from localora.lab.training.record import Evaluation


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
        model, tokenizer = load_base_model(recipe.model.name, getattr(torch, recipe.model.dtype))
        known |= _measure(model, tokenizer, recipe, missing)
        del model
    loaded = load_result(recipe, folder)
    after = _measure(cast(PreTrainedModel, loaded.model), loaded.tokenizer, recipe, watch)
    return Watched(tasks=dict(watch), before={name: known[name] for name in watch}, after=after)


def _measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, watch: Mapping[str, DataSpec]
) -> dict[str, Evaluation]:
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]
    found = {}
    for name, data in watch.items():
        task = load_task(data)
        questions = subset(task.test, recipe.evaluation.examples, data.seed)
        encoded = encode_examples(questions, tokenizer, recipe.training.max_length)
        found[name] = measure_task(model, tokenizer, encoded, questions, task.scorer, recipe.evaluation)
    return found
