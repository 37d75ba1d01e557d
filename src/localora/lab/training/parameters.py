"""How many parameters a model has, which of its layers LoRA would adapt, and how many it would train."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from localora.lab.cost.shapes import meta_model


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


def lora_of_shapes(model: PreTrainedModel, r: int, target_modules: str | list[str]) -> PeftModel:
    """PEFT's LoRA on a model of the same shapes without weights, to be asked what it adapts.

    Raises:
        ValueError: nothing matches `target_modules`.
    """
    shapes = meta_model(str(model.name_or_path), model.config, torch.float32)
    adapted = get_peft_model(shapes, LoraConfig(r=r, target_modules=target_modules), low_cpu_mem_usage=True)
    assert isinstance(adapted, PeftModel)
    return adapted
