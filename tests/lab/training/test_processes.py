"""One run on two processes: the same training as on one, and one of them measures, writes and prints."""

from __future__ import annotations

import math
import os
import socket
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, multiprocessing

from localora.cli import app
from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.schema import RecipeError
from localora.lab.run.setup import Setup
from localora.lab.run.train import train
from localora.lab.training import trainer as trainer_module
from localora.lab.training.record import Evaluation, RunRecord
from localora.lab.training.trainer import CheckedTrainer, TrainingError, build_trainer
from tiny_runs import recipe_values, write_recipe

pytestmark = pytest.mark.slow

EXACT = ["lora", "adalora", "lora-ga"]
PLACED = ["g-lora", "cps-lora"]  # by scores of what each process has of a batch, so another block may win
BY_API, BY_COMMAND = [*EXACT, "g-lora"], "cps-lora"


def count_measurements(folder: Path, rank: int) -> None:
    original = Setup.measure

    def noted(self: Setup, *args: Any, **kwargs: Any) -> Evaluation:
        with (folder / f"measured-{rank}").open("a") as file:
            file.write("x")
        return original(self, *args, **kwargs)

    Setup.measure = noted  # type: ignore[method-assign]


def stopped_by_the_loss_of_one(rank: int, values: dict[str, Any]) -> None:
    """At the second step, the loss of process 1 alone is no number."""
    original = CheckedTrainer.compute_loss

    def poisoned(self: CheckedTrainer, *args: Any, **kwargs: Any) -> Tensor:
        bad = rank == 1 and self.state.global_step == 1
        return original(self, *args, **kwargs) * (math.nan if bad else 1.0)

    CheckedTrainer.compute_loss = poisoned  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="became nan at step 2"):
        train(validate_recipe(values))
    CheckedTrainer.compute_loss = original  # type: ignore[method-assign]


def stopped_and_resumed(values: dict[str, Any]) -> None:
    original = CheckedTrainer.training_step

    def pulled(self: CheckedTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 5:
            raise RuntimeError("plug pulled")
        return original(self, *args, **kwargs)

    CheckedTrainer.training_step = pulled  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="plug pulled"):
        train(validate_recipe(values))
    CheckedTrainer.training_step = original  # type: ignore[method-assign]
    train(validate_recipe(values), resume=True)


def work(rank: int, folder: Path, model: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    count_measurements(folder, rank)
    with (folder / f"printed-{rank}").open("w") as out, redirect_stdout(out):
        for method in BY_API:
            train(validate_recipe(recipe_values(model, folder / "two" / method, method)))
        stopped_and_resumed(recipe_values(model, folder / "two" / "resumed", "lora"))
        stopped_by_the_loss_of_one(rank, recipe_values(model, folder / "two" / "poisoned", "lora"))
        values = recipe_values(model, folder / "two" / BY_COMMAND, BY_COMMAND)
        recipe = write_recipe(folder / f"recipe-{rank}.yaml", values)
        app(["train", str(recipe)], standalone_mode=False)  # leaves the other process at its end


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def losses(record: RunRecord) -> list[float]:
    assert record.after is not None
    measured = [record.before.loss, record.after.loss]
    return [point.loss for point in (*record.curve.train, *record.curve.held_out)] + measured


def test_two_processes_train_as_one_and_leave_one_record(model_folder: Path, tmp_path: Path) -> None:
    multiprocessing.spawn(work, (tmp_path, model_folder, free_port()), nprocs=2)
    for method in [*EXACT, *PLACED]:
        alone = train(validate_recipe(recipe_values(model_folder, tmp_path / "one" / method, method)))
        folder = tmp_path / "two" / method
        record = RunRecord.read(folder / "run.json")
        assert record.status == "finished"
        assert (record.machine["processes"], alone.machine["processes"]) == (2, 1)
        assert losses(record)[0] == pytest.approx(losses(alone)[0], abs=1e-4)  # before anything is learned
        assert losses(record) == pytest.approx(losses(alone), abs=1e-3 if method in EXACT else 0.2)
        assert record.after is not None
        assert record.after.loss < record.before.loss
        assert (record.placement is None) == (method in EXACT)
        assert [event["step"] for event in record.repartitions] == [event["step"] for event in alone.repartitions]
        assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "one" / method).iterdir()}
    resumed, straight = (
        load_file(tmp_path / "two" / name / "adapter" / "adapter_model.safetensors") for name in ("resumed", "lora")
    )
    assert all(torch.equal(tensor, straight[name]) for name, tensor in resumed.items())
    poisoned = RunRecord.read(tmp_path / "two" / "poisoned" / "run.json")
    assert poisoned.status == "failed"
    assert str(poisoned.error).startswith("the loss became nan at step 2")
    # Before and after, once a run. The one that was resumed knew the former; the poisoned one came no further.
    assert len((tmp_path / "measured-0").read_text()) == 2 * (len(BY_API) + 2) + 1
    assert not (tmp_path / "measured-1").exists()
    printed = (tmp_path / "printed-0").read_text()
    assert printed.count("record       ") == 1
    assert (tmp_path / "printed-1").read_text() == ""


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "processes", lambda: (0, 2))
    recipe = validate_recipe(recipe_values(tmp_path, tmp_path, "lora", batch_size=3))
    with pytest.raises(RecipeError, match=r"training.batch_size: 2 processes cannot share 3 examples; use a multiple"):
        build_trainer(recipe, tmp_path)
