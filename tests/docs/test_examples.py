"""The scripts in examples/ run on a small random model; each is short enough to be read at a glance."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

import localora
from patience import PATIENCE
from tiny_runs import save_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # transformers', on machines without a GPU

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = sorted(EXAMPLES.glob("accelerate-*.yaml"))
LINES = 40


def run(name: str, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(save_tiny_model(tmp_path / "model"))


def test_they_are_short() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 3
    assert all(len(script.read_text().splitlines()) <= LINES for script in scripts)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_accelerate_knows_what_the_configs_say(config: Path) -> None:
    """A key that it does not know is an error at the top level; inside a section it would be without effect."""
    loaded = load_config_from_file(str(config))
    known = {action.dest for action in launch_command_parser()._actions}
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(getattr(loaded, section) or {}) <= known
    assert loaded.num_processes == 8


@pytest.mark.slow
def test_accelerate_launch(model: str) -> None:
    """Two processes place alike and leave one adapter, which this process loads."""
    command = ["-m", "accelerate.commands.launch", "--config_file", str(EXAMPLES / "accelerate-ddp.yaml")]
    here = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    script = [str(EXAMPLES / "trainer_callback.py"), model]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, *command, *here, *script],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reports = re.findall(r"7 layers placed from 2 batches in .* s \((loss [\d.]+)\)", done.stdout)
    assert len(reports) == 2
    assert localora.load("my-adapter").peft_config["default"].method == "cps-lora"


@pytest.mark.slow
def test_own_loop_and_export(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_loop.py", model)
    text = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", text)]
    assert losses[-1] < losses[0]
    assert "event at step 10" in text
    assert "rank=32" in text  # two times K r

    run("export_and_check.py")
    text = capsys.readouterr().out
    assert "rank 32 (exact)" in text
    assert float(re.findall(r"logits: (\S+)", text)[0]) < 1e-3


@pytest.mark.slow
def test_trainer_callback(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("trainer_callback.py", model)
    assert "7 layers placed from 2 batches" in capsys.readouterr().out
    assert Path("my-adapter", "adapter_model.safetensors").exists()
