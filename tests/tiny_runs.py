"""A model folder and recipes small enough to run `localora train` in a test, and a plug to pull."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.ordeal import tiny
from torch import Tensor

from localora.lab.training.trainer import CheckedTrainer

save_tiny_model = tiny.save_model  # of the ordeal, too
_COMMON: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
_PLACED = _COMMON | {"calibration_steps": 2, "repartition": [0.5]}
METHODS: dict[str, dict[str, Any]] = {
    "lora": _COMMON | {"name": "lora"},
    "g-lora": _PLACED | {"name": "g-lora", "local_size": 0.5},
    "cps-lora": _PLACED | {"name": "cps-lora", "clusters": 2},
    "hybrid": _PLACED | {"name": "hybrid", "clusters": 2},
}
OTHERS: dict[str, dict[str, Any]] = {  # each with something of its own before, during or after training
    "pissa": _COMMON | {"name": "pissa"},
    "lora-ga": _COMMON | {"name": "lora-ga", "calibration_steps": 2},
    "adalora": _COMMON | {"name": "adalora"},
    "full": {"name": "full", "r": 4, "target_modules": ["q_proj", "down_proj"]},
}


def recipe_values(model: Path, out: Path, method: str = "cps-lora", **training: Any) -> dict[str, Any]:
    """A complete recipe of 6 steps, without pictures, for they take long; `training` overrides that section."""
    return {
        "model": {"name": str(model), "dtype": "float32"},  # the same on every processor
        "data": {"task": "arithmetic", "train_size": 24, "validation_size": 6, "test_size": 6},
        "method": (METHODS | OTHERS)[method],
        "training": {"steps": 6, "batch_size": 2, "learning_rate": 1e-2, "checkpoint_every": 4} | training,
        "evaluation": {"examples": 4, "curve_examples": 4, "curve_points": 3, "batch_size": 4, "max_new_tokens": 4},
        "output": {"folder": str(out), "plots": False},
    }


def write_recipe(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Pull the plug when the given step begins."""
    original = CheckedTrainer.training_step

    def pulled(self: CheckedTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step + 1 == step:
            raise RuntimeError("plug pulled")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CheckedTrainer, "training_step", pulled)
