"""How many parameters a model has, and how many LoRA would train in it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from localora.adapter.targets import linear_layers_of
from localora.errors import ConfigError, listed
from localora.lab.cost.shapes import adapted_shapes
from localora.lab.recipe.peft_methods import MethodBase


def trainable_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def all_parameters(model: nn.Module) -> int:
    """Parameters of the model, trainable or not; a tied one counts once."""
    return sum(p.numel() for p in model.parameters())


def lora_beside(model: PreTrainedModel, method: MethodBase) -> PeftModel:
    """PEFT's LoRA at the method's r on the same matrices, to be asked what it adapts and trains; of shapes only.

    Raises:
        ValueError: nothing matches the method's `target_modules`, or a name in it, which PEFT would pass over.
    """
    experts = getattr(method, "target_parameters", None)
    config = LoraConfig(r=method.r, target_modules=method.target_modules, target_parameters=experts)
    with torch.device("meta"):
        shapes = type(model)(model.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are for who trains it
        lora = adapted_shapes(shapes, config)
    found: Any = lora.base_model.targeted_module_names
    names = method.target_modules if isinstance(method.target_modules, list) else []
    strange = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in found)]
    if strange:
        raise ConfigError(f"target_modules: no layer is called {listed(strange)}. {linear_layers_of(shapes)}")
    return lora
