"""The scripts in examples/ run on a small random model; each is short enough to be read at a glance."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from tiny_runs import save_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # transformers', on machines without a GPU

EXAMPLES = Path(__file__).parents[2] / "examples"
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
