"""Adapters with a non-zero update, and partitions near the one they have."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from localora import Partition
from localora.adapter.layer import LocalizedLinear
from localora.adapter.status import adapted_layers
from method_table import BY_NAME
from tiny_models import MLP_TARGETS, Mlp, mlp_batch

MOVING = ("g-lora", "cps-lora", "hybrid")


def adapted_mlp(method: str, **options: object) -> PeftModel:
    """The first layer is 24 x 20, the second 16 x 24; placed at random, with factors that are not zero."""
    torch.manual_seed(1)
    return get_peft_model(Mlp(), BY_NAME[method].config(target_modules=MLP_TARGETS, **options))  # type: ignore[arg-type]


def first_layer(model: nn.Module) -> LocalizedLinear:
    return adapted_layers(model, "default")[0][1]


def partition(layer: LocalizedLinear) -> Partition:
    found = layer.local_partition("default")
    assert found is not None
    return found


def factors(layer: LocalizedLinear) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.localized_local_A["default"].weight, layer.localized_local_B["default"].weight


def swapped(old: Partition, rows: int, cols: int) -> Partition:
    """`old` with so many rows and columns exchanged between clusters (or with the uncovered): sizes stay the same."""
    return Partition.from_labels(_swap(old.row_labels, rows), _swap(old.col_labels, cols), old.clusters)


def _swap(labels: Tensor, count: int) -> Tensor:
    """Exchanges the labels of `count` elements, two by two, each pair of different labels."""
    assert count % 2 == 0
    labels, low, high = labels.clone(), int(labels.min()), int(labels.max())
    first, second = ((labels == k).nonzero().flatten()[: count // 2] for k in (low, high))
    labels[first], labels[second] = high, low
    return labels


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        loss = model(**mlp_batch(seed=step))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
