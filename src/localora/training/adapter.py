"""From the recipe's method section to a PEFT configuration, and what an adapter costs beside LoRA."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from localora import CpsLoraConfig, GlobalLocalLoraConfig
from localora.recipe import GLoraMethod, LoraMethod, MethodBase


def adapter_config(method: MethodBase, seed: int) -> PeftConfig:
    """The configuration that `get_peft_model` takes. Plain LoRA is PEFT's own, so that it is a fair baseline.

    Raises:
        ValueError: keys that contradict each other; the message says which.
    """
    options = method.model_dump(exclude={"name", "alpha", "calibration_steps"})
    options["task_type"] = "CAUSAL_LM"
    if isinstance(method, LoraMethod):
        options |= {"lora_dropout": options.pop("dropout"), "lora_alpha": method.resolved_alpha}
        return LoraConfig(**options)
    config_class = GlobalLocalLoraConfig if isinstance(method, GLoraMethod) else CpsLoraConfig
    return config_class(**options, alpha=method.resolved_alpha, seed=seed)


def trainable_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def base_parameters(model: nn.Module) -> int:
    """Parameters of the model without what the adapter adds."""
    return sum(p.numel() for p in model.parameters() if not p.requires_grad)


def lora_parameters(model: nn.Module, r: int) -> int:
    """r (m + n) summed over the adapted layers: the trainable parameters of LoRA at rank r on the same layers."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    return sum(r * (layer.in_features + layer.out_features) for layer in layers)
