"""Ctrl-C and SIGTERM: what stays is whole, and what is said tells how to go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from localora import CpsLoraConfig
from localora.cli import app
from localora.export import lora
from localora.lab.training.record import RunRecord
from localora.lab.training.trainer import CheckedTrainer
from patience import heed_interrupts
from tiny_runs import recipe_values, write_recipe

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("step", "said", "option"),
    [
        (4, "stopped; --resume continues it from its last checkpoint", "--resume"),
        (1, "stopped; it has no checkpoint yet (training.checkpoint_every); --overwrite starts it anew", "--overwrite"),
    ],
)
def test_a_run_that_is_stopped_goes_on(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    step: int,
    said: str,
    option: str,
) -> None:
    values = recipe_values(model_folder, tmp_path / "run", "cps-lora", checkpoint_every=2)
    recipe = str(write_recipe(tmp_path / "recipe.yaml", values))
    heed_interrupts()
    original, before = CheckedTrainer.training_step, signal.getsignal(signal.SIGTERM)

    def stopped(self: CheckedTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step + 1 == step:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(CheckedTrainer, "training_step", stopped)
        result = CliRunner().invoke(app, ["train", recipe])
    assert result.exit_code == 128 + number
    assert said in result.stdout
    assert result.stderr == f"stopped by {signal.Signals(number).name}\n"
    assert signal.getsignal(signal.SIGTERM) == before
    again = CliRunner().invoke(app, ["train", recipe, option])
    assert again.exit_code == 0, again.output
    record = RunRecord.read(tmp_path / "run" / "run.json")
    assert (record.status, record.resumed_at) == ("finished", [2] if step == 4 else [])


@pytest.mark.parametrize("number", SIGNALS)
def test_an_export_that_is_stopped_leaves_the_old_one(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    config = CpsLoraConfig(r=4, clusters=2, target_modules=["q_proj"], placement="random", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(tmp_path / "adapter")
    command = ["export", str(tmp_path / "adapter"), str(tmp_path / "plain"), "--overwrite"]
    assert CliRunner().invoke(app, command).exit_code == 0
    old = {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    heed_interrupts()
    monkeypatch.setattr(lora, "save_file", lambda *_, **__: os.kill(os.getpid(), number))
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stderr) == (128 + number, f"stopped by {signal.Signals(number).name}\n")
    assert {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()} == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "plain"]
