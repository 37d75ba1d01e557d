"""Adapted layers of given shapes with random factors, optimizer moments and gradient sketches, but no base weights.

Shape legend
    m, n   rows and columns of a layer's weight      s   width of the sketch      T   tokens seen
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from localora import CpsLoraConfig, Partition
from localora.adapter.layer import LocalizedLinear
from localora.placement.budget import LocalShape
from localora.placement.random import random_partition
from localora.placement.sketch import GradientSketch

NAME = "default"
BLOCKS = 32
HIDDEN, KEYS, INNER = 4096, 1024, 14336
LLAMA_3_8B = {  # (m, n) of one block
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (KEYS, HIDDEN),
    "v_proj": (KEYS, HIDDEN),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (INNER, HIDDEN),
    "up_proj": (INNER, HIDDEN),
    "down_proj": (HIDDEN, INNER),
}


@dataclass(frozen=True)
class Adapted:
    """All that a re-partition works on, by layer name."""

    layers: dict[str, LocalizedLinear]
    sketches: dict[str, GradientSketch]
    optimizer: torch.optim.Optimizer


def llama_shapes(blocks: int) -> dict[str, tuple[int, int]]:
    """Name -> (m, n) of the seven linear matrices of each of `blocks` blocks."""
    return {f"{block}.{name}": shape for block in range(blocks) for name, shape in LLAMA_3_8B.items()}


def adapted(shapes: dict[str, tuple[int, int]], config: CpsLoraConfig) -> Adapted:
    """Layers as they are some steps into training: factors that are not zero, a random placement, Adam's moments.

    The sketch is of a random gradient of rank s, without any structure to find: the hardest case for the planner.
    """
    torch.manual_seed(0)
    layers, sketches = {}, {}
    for number, (key, (m, n)) in enumerate(shapes.items()):
        layer = LocalizedLinear(_no_weight(m, n))
        layer.add_adapter(
            NAME,
            config.layer_budget(m, n, config.r),
            scale=config.layer_scale(key),
            dropout=0.0,
            zero_init=False,
            inference_mode=False,
        )
        layer.place(NAME, random_partition(m, n, _local_shape(layer), seed=number))
        sketch = GradientSketch(m, n, config.sketch, config.seed)
        sketch.observe(torch.randn(config.sketch, n), torch.randn(config.sketch, m))
        layers[key], sketches[key] = layer, sketch
    parameters = [p for layer in layers.values() for name, p in layer.named_parameters() if "localized_" in name]
    optimizer = torch.optim.AdamW(parameters)
    for p in parameters:
        optimizer.state[p] = {
            "step": torch.tensor(100.0),
            "exp_avg": torch.randn_like(p),
            "exp_avg_sq": torch.rand_like(p),
        }
    return Adapted(layers, sketches, optimizer)


def _local_shape(layer: LocalizedLinear) -> LocalShape:
    local = layer.localized_layout[NAME].budget.local
    assert local is not None
    return local


def other_labels(layer: LocalizedLinear, number: int) -> Partition:
    """Random labels for the layer, which has random ones already."""
    return random_partition(layer.out_features, layer.in_features, _local_shape(layer), seed=1000 + number)


def _no_weight(m: int, n: int) -> nn.Linear:
    """A linear layer that says it is m x n and holds one number."""
    linear = nn.Linear(1, 1, bias=False)
    linear.weight = nn.Parameter(torch.zeros(1, 1).expand(m, n), requires_grad=False)
    linear.in_features, linear.out_features = n, m
    return linear
