"""The pictures of one run, drawn from its record and its adapter after it is over."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from localora.lab.recipe.methods import LocalizedMethod
from localora.lab.recipe.schema import Recipe, RecipeError
from localora.lab.training.folder import RunFolder
from localora.lab.training.record import RunRecord


def check_drawable(recipe: Recipe) -> None:
    """Before the run, that its pictures can be drawn after it.

    Raises:
        RecipeError: matplotlib is missing.
    """
    if recipe.output.plots and find_spec("matplotlib") is None:
        raise RecipeError("output.plots", ["needs matplotlib (pip install 'localora[plots]'), or set it to false"])


def draw_run(recipe: Recipe, record: RunRecord) -> None:
    """loss.png, and placement.png where the method places anything; nothing where the recipe wants no pictures."""
    if not recipe.output.plots:
        return
    # matplotlib is an extra, and not needed without pictures
    from localora.lab.report.pictures import draw_losses, draw_placements, load_partitions

    folder = RunFolder(Path(str(recipe.output.folder)))
    draw_losses({record.method: record.curve}, folder.loss_picture)
    partitions = load_partitions(folder.adapter) if isinstance(recipe.method, LocalizedMethod) else {}
    if partitions:  # LoRA as a placement has none
        draw_placements(partitions, folder.placement_picture)
