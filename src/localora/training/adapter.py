"""From the recipe's method section to a PEFT configuration, and what an adapter costs beside LoRA."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from localora import CpsLoraConfig, GlobalLocalLoraConfig
from localora.recipe import CpsLoraMethod, GLoraMethod, HybridMethod, LoraMethod, MethodBase


def adapter_config(method: MethodBase, seed: int) -> PeftConfig:
    """The configuration that `get_peft_model` takes. Plain LoRA is PEFT's own, so that it is a fair baseline."""
    common: dict[str, Any] = {
        "r": method.r,
        "target_modules": method.target_modules,
        "use_rslora": method.use_rslora,
        "task_type": "CAUSAL_LM",
    }
    if isinstance(method, LoraMethod):
        return LoraConfig(**common | {"lora_alpha": method.resolved_alpha, "lora_dropout": method.dropout})
    common |= {"alpha": method.resolved_alpha, "dropout": method.dropout, "seed": seed}
    if isinstance(method, GLoraMethod):
        return GlobalLocalLoraConfig(
            **common,
            global_share=method.global_share,
            local_size=method.local_size,
            placement=method.placement,
        )
    if isinstance(method, CpsLoraMethod):
        share = method.global_share if isinstance(method, HybridMethod) else 0.0
        return CpsLoraConfig(
            **common,
            clusters=method.clusters,
            balance=method.balance,
            global_share=share,
            placement=method.placement,
        )
    raise TypeError(f"no adapter for {type(method).__name__}")


def trainable_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def base_parameters(model: nn.Module) -> int:
    """Parameters of the model without what the adapter adds."""
    return sum(p.numel() for p in model.parameters() if not p.requires_grad)


def lora_parameters(model: nn.Module, r: int) -> int:
    """r (m + n) summed over the adapted layers: the trainable parameters of LoRA at rank r on the same layers."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    return sum(r * (layer.in_features + layer.out_features) for layer in layers)
