"""A run of a comparison, wherever it was killed: it goes on from there, and what it leaves is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_runs
from localora.lab.compare import run_one
from localora.lab.inspect.matrix import effective_rank
from localora.lab.inspect.source import open_source
from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.schema import Recipe

pytestmark = pytest.mark.slow


def recipe(model: Path, out: Path) -> Recipe:
    values = tiny_runs.recipe_values(model, out / "run", "lora", checkpoint_every=2)
    return validate_recipe(values)


def update(out: Path) -> dict[str, Any]:
    return json.loads((out / "update.json").read_text())


def test_the_ranks_are_those_of_the_update(model_folder: Path, tmp_path: Path) -> None:
    run_one.run(recipe(model_folder, tmp_path), None, keep_adapter=True)
    source = open_source(tmp_path / "run" / "adapter", None, "default", None)
    dense = [torch.linalg.svdvals(source.load(name).dense()) for name in source.names]
    expected = sum(effective_rank(s[:4]) for s in dense) / 2  # the median of two layers
    assert update(tmp_path)["effective_rank"] == pytest.approx(expected, rel=1e-3)
    assert update(tmp_path)["layers"] == 2


def test_a_run_killed_after_training_is_measured_and_not_trained_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(model_folder, tmp_path)
    record = run_one.run(chosen, None, keep_adapter=True)
    before = update(tmp_path)
    (tmp_path / "update.json").unlink()
    monkeypatch.setattr(run_one, "train", lambda *_, **__: pytest.fail("trained again"))
    assert run_one.run(chosen, None, keep_adapter=False) == record
    assert update(tmp_path) == before
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_run_killed_in_training_goes_on_from_its_checkpoint(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run_one.run(recipe(model_folder, tmp_path / "straight"), None, keep_adapter=False)
    broken = recipe(model_folder, tmp_path / "broken")
    with monkeypatch.context() as patch:
        tiny_runs.stop_at(patch, step=6)
        with pytest.raises(RuntimeError, match="plug pulled"):
            run_one.run(broken, None, keep_adapter=False)
    assert not (tmp_path / "broken" / "update.json").exists()
    resumed = run_one.run(broken, None, keep_adapter=False)
    assert resumed.resumed_at == [4]
    assert resumed.curve == straight.curve
    assert update(tmp_path / "broken") == update(tmp_path / "straight")


def test_what_the_first_final_run_measured_is_taken_over(model_folder: Path, tmp_path: Path) -> None:
    first = run_one.run(recipe(model_folder, tmp_path / "first"), None, keep_adapter=False)
    known = first.before.model_copy(update={"loss": 123.0})
    assert run_one.run(recipe(model_folder, tmp_path / "second"), known, keep_adapter=False).before == known
