"""`localora train` beside the run itself: pictures, drawn after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from localora.lab.commands.train import train_and_report
from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.schema import Recipe
from localora.lab.training.record import RunRecord
from tiny_runs import recipe_values


def with_pictures(model: Path, out: Path, method: str) -> Recipe:
    values = recipe_values(model, out, method, steps=2)
    values["output"]["plots"] = True
    return validate_recipe(values)


@pytest.mark.parametrize(("method", "pictures"), [("cps-lora", {"loss.png", "placement.png"}), ("lora", {"loss.png"})])
def test_pictures_of_what_the_method_does(model_folder: Path, tmp_path: Path, method: str, pictures: set[str]) -> None:
    train_and_report(with_pictures(model_folder, tmp_path / "run", method))
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == pictures
    for name in pictures:
        with Image.open(tmp_path / "run" / name) as picture:
            assert min(picture.size) > 300


def test_a_picture_that_cannot_be_drawn_costs_no_run(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("localora.lab.report.pictures.draw_losses", fails)
    with pytest.raises(RuntimeError, match="no ink"):
        train_and_report(with_pictures(model_folder, tmp_path / "run", "lora"))
    assert RunRecord.read(tmp_path / "run" / "run.json").status == "finished"
