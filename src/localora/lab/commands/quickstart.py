"""The quickstart: three methods at equal parameters, on the same model, data, seed and order of examples."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.schema import Recipe
from localora.lab.report.console import comparison_table, export_line
from localora.lab.report.overview import draw_overview
from localora.lab.report.run_pictures import draw_run
from localora.lab.run.train import train
from localora.lab.training.record import RunRecord

# recipes/quickstart.yaml is the CPS-LoRA run of this, for `localora train`; a test holds the two together.
BASE: dict[str, Any] = {
    "model": {"name": "smollm2-135m", "dtype": "bfloat16"},
    "data": {"task": "arithmetic", "difficulty": 2, "train_size": 1000},
    "training": {"steps": 30, "batch_size": 8, "learning_rate": 3e-3, "max_length": 256},
    "evaluation": {"examples": 40, "curve_examples": 24, "curve_points": 3, "batch_size": 40, "max_new_tokens": 40},
}
METHODS: tuple[dict[str, Any], ...] = (
    {"name": "cps-lora", "r": 8, "clusters": 2, "calibration_steps": 2, "sketch": 16},
    {"name": "g-lora", "r": 8, "calibration_steps": 2},
    {"name": "lora", "r": 8},
)


def quickstart_recipe(method: dict[str, Any], folder: Path) -> Recipe:
    return validate_recipe(BASE | {"method": method, "output": {"folder": str(folder / method["name"])}})


def run_quickstart(folder: Path, console: Console) -> list[RunRecord]:
    """Train every method into `folder`, print the comparison and the path of a picture, return the records."""
    start = time.perf_counter()
    records: list[RunRecord] = []
    for method in METHODS:
        console.rule(method["name"], align="left")
        before = records[0].before if records else None  # the untrained model is the same for all
        recipe = quickstart_recipe(method, folder)
        records.append(train(recipe, overwrite=True, before=before, console=console))
        draw_run(recipe, records[-1])
        gc.collect()  # a Trainer holds its model in cycles, and the next run's peak memory is to be its own
    picture = folder / "quickstart.png"
    draw_overview({record.method: (record, folder / record.method / "adapter") for record in records}, picture)
    data = records[0].data
    console.print(comparison_table(records, f"{BASE['model']['name']}, {data['name']}, one seed"))
    for record in records:
        if record.export is not None:
            console.print(
                f"{record.method} as plain LoRA: {export_line(record.export)}", highlight=False, soft_wrap=True
            )
    console.print(f"picture: {picture}", highlight=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.0f} s in all", highlight=False)
    return records
