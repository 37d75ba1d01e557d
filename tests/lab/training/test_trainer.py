"""From the training section to the Trainer's arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations import TensorBoardCallback, integration_utils

import tiny_models
from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.schema import RecipeError
from localora.lab.training import trainer as trainer_module
from localora.lab.training.trainer import CheckedTrainer, build_trainer, check_trackers
from tiny_runs import recipe_values


def trainer(tmp_path: Path, **training: Any) -> CheckedTrainer:
    recipe = validate_recipe(recipe_values(tmp_path, tmp_path, **training))
    return build_trainer(recipe, tmp_path / "checkpoints", model=tiny_models.tiny_llama(), train_dataset=[])


def test_the_recipe_reaches_the_arguments(tmp_path: Path) -> None:
    args = trainer(tmp_path, steps=250, gradient_accumulation=3, seed=7, weight_decay=0.1, precision="bf16").args
    assert (args.max_steps, args.gradient_accumulation_steps, args.seed, args.weight_decay) == (250, 3, 7, 0.1)
    assert args.bf16
    assert args.report_to == []
    assert args.logging_steps == 3  # at most 100 points


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.filterwarnings("error::FutureWarning")  # the name that transformers means to take away
def test_gradient_checkpointing(tmp_path: Path, on: bool) -> None:
    args = trainer(tmp_path, gradient_checkpointing=on).args
    assert args.gradient_checkpointing is on
    assert args.gradient_checkpointing_kwargs == ({"use_reentrant": False} if on else None)


class NoFiles(TensorBoardCallback):
    def __init__(self) -> None:  # without the package
        self.logging_dir = None


def test_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", NoFiles)
    made = trainer(tmp_path, report_to=["tensorboard"])
    (tracker,) = [x for x in made.callback_handler.callbacks if isinstance(x, NoFiles)]
    assert tracker.logging_dir == str(tmp_path / "tensorboard")


def test_a_tracker_that_is_not_there_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "find_spec", lambda name: None)
    recipe = validate_recipe(recipe_values(tmp_path, tmp_path, report_to=["trackio"]))
    with pytest.raises(RecipeError, match="trackio is not installed: pip install trackio"):
        check_trackers(recipe)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ],
)
def test_the_rate_warms_up_and_follows_its_schedule(tmp_path: Path, schedule: str, expected: list[float]) -> None:
    made = trainer(tmp_path, steps=8, warmup=0.25, schedule=schedule, learning_rate=1.0)
    made.create_optimizer_and_scheduler(8)
    rates = []
    for _ in range(8):
        rates.append(made.lr_scheduler.get_last_lr()[0])
        made.optimizer.step()
        made.lr_scheduler.step()
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))


def test_a_run_of_one_step_learns_at_the_full_rate(tmp_path: Path) -> None:
    made = trainer(tmp_path, steps=1, warmup=0.1, learning_rate=0.5)
    made.create_optimizer_and_scheduler(1)
    assert set(made.lr_scheduler.get_last_lr()) == {0.5}
