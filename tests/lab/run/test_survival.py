"""What a run survives: kills after its last step, NaN, another process, a disk that is full or gone."""

from __future__ import annotations

import errno
import io
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from localora.files import StorageError
from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.schema import Recipe
from localora.lab.run.train import train
from localora.lab.training.folder import FolderError
from localora.lab.training.trainer import CheckedTrainer, TrainingError
from tiny_runs import recipe_values

pytestmark = pytest.mark.slow

ADAPTER = "adapter/adapter_model.safetensors"
RESULT = {"full": "model/model.safetensors"}


def recipe(model: Path, out: Path, method: str = "lora", **training: Any) -> Recipe:
    return validate_recipe(recipe_values(model, out, method, **training))


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.parametrize(("method", "value"), [("cps-lora", math.nan), ("full", math.inf)])
def test_a_gradient_that_is_no_number_never_reaches_a_checkpoint(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, value: float
) -> None:
    """The loss is finite, and so is every loss that is logged."""
    step = CheckedTrainer.training_step

    def poisoned(self: CheckedTrainer, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        loss = step(self, model, *args, **kwargs)
        if self.state.global_step == 3:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            gradients[-1].view(-1)[0] = value
        return loss

    chosen = recipe(model_folder, tmp_path / "run", method, checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(CheckedTrainer, "training_step", poisoned)
        with pytest.raises(TrainingError, match=r"the gradient became .* at step 4; lower training.learning_rate"):
            train(chosen, console=quiet())
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-2"
    weights = load_file(next(checkpoint.glob("*model*.safetensors")))
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert train(chosen, resume=True, console=quiet()).status == "finished"


def test_weights_that_are_no_numbers_never_reach_a_checkpoint(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever made them so: here the optimizer's own step."""
    step = torch.optim.AdamW.step

    def overflows(self: torch.optim.AdamW, *args: Any) -> Any:
        result = step(self, *args)
        self.param_groups[0]["params"][0].data.view(-1)[0] = math.nan
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", overflows)
    with pytest.raises(TrainingError, match=r"the weights became .* at step 1; lower"):
        train(recipe(model_folder, tmp_path / "run", checkpoint_every=1), console=quiet())
    assert not list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_one_process_a_folder(model_folder: Path, tmp_path: Path, how: dict[str, bool]) -> None:
    chosen = recipe(model_folder, tmp_path / "run", steps=1)
    train(chosen, console=quiet())
    before = (tmp_path / "run" / "run.json").read_bytes()
    hold = (
        "import sys, pathlib\n"
        "from localora.lab.training.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FolderError, match=rf"is in use by another process \(process {other.pid} on .*stop it"):
            train(chosen, console=quiet(), **how)
        other.kill()
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert train(chosen, overwrite=True, console=quiet()).status == "finished"  # the lock fell with its process


def test_a_folder_removed_during_the_run_is_an_error_at_once(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = CheckedTrainer.training_step, []

    def removed(self: CheckedTrainer, *args: Any, **kwargs: Any) -> Tensor:
        steps.append(self.state.global_step)
        if len(steps) == 2:
            shutil.rmtree(tmp_path / "run")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(CheckedTrainer, "training_step", removed)
    with pytest.raises(FolderError, match="was removed while it was being written into"):
        train(recipe(model_folder, tmp_path / "run"), console=quiet())
    assert steps == [0, 1]
    assert not (tmp_path / "run").exists()


WRITERS: dict[str, tuple[Any, str, str]] = {  # who writes, and a part of what it is called with
    "checkpoint": (CheckedTrainer, "save_model", "checkpoint-4"),
    "record": (Path, "replace", ".run.json.partial"),
    "adapter": (PeftModel, "save_pretrained", ".adapter.partial"),
}


@pytest.mark.parametrize("stage", WRITERS)
def test_a_disk_that_is_full_is_said_so(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    owner, name, target = WRITERS[stage]
    original = getattr(owner, name)
    chosen = recipe(model_folder, tmp_path / "run", checkpoint_every=2)

    def full(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = any((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
        if begun and target in f"{self if isinstance(self, Path) else ''} {args}":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(StorageError, match=r"No space left on device; free some space.*--resume continues it"):
            train(chosen, console=quiet())
    assert not list((tmp_path / "run").glob(".*partial*"))
    assert train(chosen, resume=True, console=quiet()).status == "finished"
