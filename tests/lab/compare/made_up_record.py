"""The record that stand-ins for a run leave; localora is not imported: that would take longer than a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_record(folder: Path, recipe: dict[str, Any], loss: float, **more: Any) -> None:
    """A finished run of `recipe` with this validation and test loss; `more` replaces keys of the record."""
    record = {
        "status": "finished",
        "recipe": recipe,
        "seed": recipe["training"]["seed"],
        "versions": {},
        "machine": {},
        "data": {"name": "sums", "sizes": {}, "hashes": {}},
        "parameters": {"trainable": 640, "lora_same_r": 640, "base": 10_000},
        "before": {"loss": 3.0, "examples": 4, "seconds": 7.5},
        "after": {"loss": loss, "examples": 4},
        "curve": {"held_out": [{"step": recipe["training"]["steps"], "loss": loss}]},
        "seconds": {"load": 1.0, "train": 10.0},
    }
    (folder / "run").mkdir(exist_ok=True)
    (folder / "update.json").write_text("{}", encoding="utf-8")
    (folder / "run" / "run.json").write_text(json.dumps(record | more), encoding="utf-8")
