"""How many parameters a model has, and how many LoRA would train in it."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def trainable_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def all_parameters(model: nn.Module) -> int:
    """Parameters of the model, trainable or not; a tied one counts once."""
    return sum(p.numel() for p in model.parameters())


def lora_parameters(model: nn.Module, r: int) -> int:
    """r (m + n) summed over the adapted layers: the trainable parameters of LoRA at rank r on the same layers."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    experts = [getattr(layer, "num_experts", 1) for layer in layers]  # of a stack, in PEFT's one layer for all of them
    return sum(e * r * (layer.in_features + layer.out_features) for e, layer in zip(experts, layers, strict=True))
