"""The one table that drives LoRA-as-placement, G-LoRA, CPS-LoRA and the hybrid through every test of the life-cycle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from localora import CpsLoraConfig, GLoraConfig
from localora.adapter.config import LocalizedConfig


@dataclass(frozen=True)
class Method:
    name: str
    config_class: Callable[..., LocalizedConfig]
    options: dict[str, Any] = field(default_factory=dict)
    places: bool = True  # False: nothing to choose, the adapter is plain LoRA and placed from the start

    def config(self, **overrides: Any) -> LocalizedConfig:
        """A config of rank 4 that is placed at once and starts from a non-zero update."""
        defaults: dict[str, Any] = {"r": 4, "alpha": 8.0, "placement": "random", "init_weights": False}
        return self.config_class(**{**defaults, **self.options, **overrides})


METHODS = (
    Method("lora-by-share", GLoraConfig, {"global_share": 1.0}, places=False),
    Method("lora-by-clusters", CpsLoraConfig, {"clusters": 1}, places=False),
    Method("g-lora", GLoraConfig, {"global_share": 0.5, "local_size": 0.5}),
    Method("cps-lora", CpsLoraConfig, {"clusters": 3}),
    Method("hybrid", CpsLoraConfig, {"clusters": 2, "global_share": 0.5}),
)
BY_NAME = {method.name: method for method in METHODS}

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
every_placed_method = pytest.mark.parametrize(
    "method", [method for method in METHODS if method.places], ids=lambda method: method.name
)
