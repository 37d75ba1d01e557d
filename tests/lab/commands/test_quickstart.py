"""The quickstart on a tiny model: three methods, one comparison, one picture."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

import tiny_runs
from localora.lab.commands import quickstart
from localora.lab.run.setup import Setup

pytestmark = pytest.mark.slow


def test_three_methods_are_compared_at_equal_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_runs.save_tiny_model(tmp_path / "model")
    values = tiny_runs.recipe_values(model, tmp_path, steps=4)
    sections = ("model", "data", "training", "evaluation")
    monkeypatch.setattr(quickstart, "BASE", {name: values[name] for name in sections})
    tiny = tuple(tiny_runs.METHODS[method["name"]] for method in quickstart.METHODS)
    monkeypatch.setattr(quickstart, "METHODS", tiny)
    measured = []
    measure = Setup.measure
    monkeypatch.setattr(Setup, "measure", lambda *args: measured.append(1) or measure(*args))
    console = Console(file=io.StringIO(), width=80)
    records = quickstart.run_quickstart(tmp_path / "out", console)
    text = console.file.getvalue()  # type: ignore[attr-defined]

    assert [record.method for record in records] == ["cps-lora", "g-lora", "lora"]
    assert len(measured) == 4  # the untrained model once, each trained one
    assert records[0].before == records[1].before == records[2].before
    lora = records[2].parameters.trainable
    assert all(record.parameters.trainable == pytest.approx(lora, rel=0.005) for record in records)
    assert len({record.data["hashes"]["train"] for record in records}) == 1
    assert len({record.seed for record in records}) == 1
    for record in records:
        assert record.after is not None
        assert f"{record.before.loss:.3f} > {record.after.loss:.3f}" in text
    picture = tmp_path / "out" / "quickstart.png"
    assert f"pictures: {picture}, {tmp_path / 'out' / 'cps-lora' / 'placement.png'}" in text
    assert f"{quickstart.QUESTIONS} of {quickstart.QUESTIONS} questions are answered word for word alike" in text
    export = tmp_path / "out" / "cps-lora" / "lora" / "adapter_model.safetensors"
    save_file({name: 30 * tensor for name, tensor in load_file(export).items()}, export)
    assert quickstart.same_answers(records[0], tmp_path / "out" / "cps-lora", console) < quickstart.QUESTIONS
    with Image.open(picture) as image:
        assert image.size == (1170, 1378)

    again = quickstart.run_quickstart(tmp_path / "out", console)  # replaces what the first left
    assert [r.after.loss for r in again if r.after] == [r.after.loss for r in records if r.after]
