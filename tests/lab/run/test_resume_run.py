"""A run that died and was resumed is the run that did not, wherever it died: one table. And what is not resumed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.schema import Recipe
from localora.lab.run import train as run_module
from localora.lab.run.setup import Setup
from localora.lab.run.train import train
from localora.lab.training.folder import FolderError
from localora.lab.training.record import RunRecord
from localora.lab.training.seal import seal
from localora.lab.training.trainer import CheckedTrainer
from tiny_runs import METHODS, OTHERS, recipe_values, stop_at

pytestmark = pytest.mark.slow

ADAPTER = "adapter/adapter_model.safetensors"
RESULT = {"full": "model/model.safetensors"}  # of the others, ADAPTER


def recipe(model: Path, out: Path, method: str = "cps-lora", **training: Any) -> Recipe:
    return validate_recipe(recipe_values(model, out, method, **training))


def quiet() -> Console:
    return Console(file=io.StringIO())


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of finished steps whenever a step begins."""
    original, steps = CheckedTrainer.training_step, []

    def counted(self: CheckedTrainer, *args: Any, **kwargs: Any) -> Tensor:
        steps.append(self.state.global_step)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CheckedTrainer, "training_step", counted)
    return steps


# Where a run may die


def in_step_6(patch: pytest.MonkeyPatch) -> None:
    stop_at(patch, step=6)


def before_checkpoint_4_is_whole(patch: pytest.MonkeyPatch) -> None:
    """Trainer's files are there, the callbacks' are not."""
    save = CheckedTrainer._save_checkpoint

    def killed(self: CheckedTrainer, *args: Any) -> None:
        save(self, *args)
        if self.state.global_step == 4:
            raise RuntimeError("plug pulled")

    patch.setattr(CheckedTrainer, "_save_checkpoint", killed)


def pulled(*_: Any, **__: Any) -> None:
    raise RuntimeError("plug pulled")


def measuring_after(patch: pytest.MonkeyPatch) -> None:
    measure, calls = Setup.measure, iter((lambda measure, *args: measure(*args), pulled))
    patch.setattr(Setup, "measure", lambda *args: next(calls)(measure, *args))


def exporting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run_module, "export_and_verify", pulled)


def saving(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run_module._Run, "save", pulled)


ALL_STEPS = {  # 11 steps of 2 in 24 examples end within an epoch, so that Trainer finds another batch; at one rate
    "steps": 11, "schedule": "constant", "warmup": 0.0, "checkpoint_every": 11,
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "dies", "settings", "resumed_at"),
    [
        *((method, in_step_6, {}, 4) for method in (*METHODS, *OTHERS)),
        ("cps-lora", before_checkpoint_4_is_whole, {"checkpoint_every": 2}, 2),
        ("lora", measuring_after, ALL_STEPS, 11),
        ("cps-lora", exporting, ALL_STEPS, 11),
        *((method, saving, ALL_STEPS, 11) for method in ("pissa", "adalora", "full")),
    ],
)
def test_a_resumed_run_is_the_one_that_never_stopped(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    dies: Callable[[pytest.MonkeyPatch], None],
    settings: dict[str, Any],
    resumed_at: int,
) -> None:
    straight = train(recipe(model_folder, tmp_path / "straight", method, **settings), console=quiet())
    broken = recipe(model_folder, tmp_path / "broken", method, **settings)
    with monkeypatch.context() as patch:
        dies(patch)
        with pytest.raises(RuntimeError, match="plug pulled"):
            train(broken, console=quiet())
    stopped = RunRecord.read(tmp_path / "broken" / "run.json")
    assert (stopped.status, stopped.error) == ("failed", "plug pulled")
    with pytest.raises(FolderError, match="already holds a run"):
        train(broken, console=quiet())
    with monkeypatch.context() as patch:
        steps = count_steps(patch)
        resumed = train(broken, resume=True, console=quiet())
    assert steps == list(range(resumed_at, broken.training.steps))  # done when each began: nothing is repeated
    assert (resumed.status, resumed.resumed_at) == ("finished", [resumed_at])
    assert resumed.curve == straight.curve
    assert resumed.before == stopped.before
    assert resumed.after is not None
    assert straight.after is not None
    assert resumed.after.loss == straight.after.loss
    assert resumed.placement == stopped.placement
    assert resumed.ranks == straight.ranks
    assert [e["step"] for e in resumed.repartitions] == [e["step"] for e in straight.repartitions]
    if steps:
        assert resumed.seconds["train"] > stopped.seconds["train"]
    result = RESULT.get(method, ADAPTER)
    ours, theirs = load_file(tmp_path / "broken" / result), load_file(tmp_path / "straight" / result)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert not list((tmp_path / "broken").glob(".*partial*"))
    assert not (tmp_path / "broken" / "checkpoints").exists()


# What is not resumed


def test_resuming_with_another_recipe_is_refused(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, step=5)
        with pytest.raises(RuntimeError, match="plug pulled"):
            train(recipe(model_folder, tmp_path / "run"), console=quiet())
    with pytest.raises(FolderError, match=r"another recipe \(training.learning_rate was 0.01, is 0.5\)"):
        train(recipe(model_folder, tmp_path / "run", learning_rate=0.5), resume=True, console=quiet())


def test_a_run_without_a_checkpoint_is_not_resumed(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(model_folder, tmp_path / "run", "lora")
    with monkeypatch.context() as patch:
        stop_at(patch, step=2)
        with pytest.raises(RuntimeError, match="plug pulled"):
            train(chosen, console=quiet())
    with pytest.raises(FolderError, match=r"stopped before its first checkpoint .*--overwrite"):
        train(chosen, resume=True, console=quiet())


def test_a_finished_run_is_not_resumed(model_folder: Path, tmp_path: Path) -> None:
    chosen = recipe(model_folder, tmp_path / "run", "lora", steps=1)
    train(chosen, console=quiet())
    with pytest.raises(FolderError, match="is finished; --overwrite starts it anew"):
        train(chosen, resume=True, console=quiet())


def test_a_damaged_checkpoint_is_refused_before_anything_is_loaded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(model_folder, tmp_path / "run", checkpoint_every=2)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(RuntimeError, match="plug pulled"):
            train(chosen, console=quiet())
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / "checkpoint-2", checkpoints / "checkpoint-two")  # is none
    rng = checkpoints / "checkpoint-2" / "rng_state.pth"
    whole = rng.read_bytes()
    rng.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "load_setup", lambda *_: pytest.fail("loaded something"))
        with pytest.raises(FolderError, match=r"checkpoint-2 cannot be resumed: rng_state.pth is missing"):
            train(chosen, resume=True, console=quiet())
    rng.write_bytes(whole)
    assert train(chosen, resume=True, console=quiet()).resumed_at == [2]


def test_a_checkpoint_that_was_not_written_here_is_not_the_newest(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(model_folder, tmp_path / "run", checkpoint_every=2)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(RuntimeError, match="plug pulled"):
            train(chosen, console=quiet())
    checkpoints = tmp_path / "run" / "checkpoints"
    own, stray = checkpoints / "checkpoint-2", checkpoints / "checkpoint-999"
    shutil.copytree(own, stray)
    with pytest.raises(FolderError, match=r"checkpoint-999 holds step 2 of a run of 6.*remove it, and --resume takes"):
        train(chosen, resume=True, console=quiet())
    state = json.loads((stray / "trainer_state.json").read_text())
    (stray / "trainer_state.json").write_text(json.dumps(state | {"global_step": 999}))
    seal(stray)  # of a longer run
    with pytest.raises(FolderError, match=r"checkpoint-999 holds step 999 of a run of 6"):
        train(chosen, resume=True, console=quiet())
    (stray / "complete").unlink()
    (checkpoints / "checkpoint-1000").symlink_to(tmp_path)  # goes when the next is written, and what it leads to stays
    assert train(chosen, resume=True, console=quiet()).resumed_at == [2]
    assert (tmp_path / "run" / "run.json").exists()
