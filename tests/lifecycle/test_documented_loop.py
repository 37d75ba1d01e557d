"""The loops in the pages of the methods run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from moving import adapted_mlp, trainable

from tiny_models import mlp_batch

PAGES = Path(__file__).parents[2] / "docs" / "methods"


class Output(dict[str, torch.Tensor]):
    """As transformers' models answer: a mapping whose loss is an attribute too."""

    @property
    def loss(self) -> torch.Tensor:
        return self["loss"]


@pytest.mark.parametrize("method", ["cps-lora", "g-lora"])
def test_the_printed_loop_re_partitions(method: str) -> None:
    page = (PAGES / f"{method}.md").read_text()
    (loop,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Repartitioner" in code)
    model = adapted_mlp(method, placement="calibrate", init_weights=True, repartition=[0.5])
    model.register_forward_hook(lambda _, __, output: Output(output))
    names = {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.AdamW(trainable(model), lr=1e-2),
        "batches": [mlp_batch(seed=seed) for seed in range(3)],
        "loader": [mlp_batch(seed=seed) for seed in range(6)],
        "total_steps": 6,
    }
    exec(loop, names)
    (event,) = names["repartitioner"].events  # type: ignore[attr-defined]
    assert event.step == 3
    assert event.frozen_rank > 0
    assert event.joined_norm > 0
