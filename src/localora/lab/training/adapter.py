"""From the recipe's method section to a PEFT configuration, and what an adapter costs beside LoRA."""

from __future__ import annotations

import math
from typing import Any

from peft import AdaLoraConfig, GraloraConfig, HiraConfig, LoraConfig, LoraGAConfig, MissConfig, PeftConfig
from peft.tuners.lora import BdLoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from localora.errors import ConfigError
from localora.lab.recipe.methods import (
    AdaLoraMethod,
    BdLoraMethod,
    GraloraMethod,
    HiraMethod,
    LocalizedMethod,
    LoraGaMethod,
    LoraMethod,
    MethodBase,
    MissMethod,
)
from localora.lab.recipe.schema import TrainingSection

_START = {"pissa": "pissa_niter_16", "lora-ga": "lora_ga"}  # PEFT's names of starts that are not zero


def adapter_config(method: MethodBase, seed: int, steps: int = TrainingSection().steps) -> PeftConfig:
    """The configuration that `get_peft_model` takes. PEFT's methods are PEFT's own, so that baselines are fair.

    `steps` is the length of training, which AdaLoRA's schedule is laid over.

    Raises:
        ValueError: keys that contradict each other, or a method without an adapter; the message says which.
    """
    if isinstance(method, LoraMethod) and method.target_parameters and method.name not in ("lora", "rslora"):
        raise ConfigError(f"{method.name}: PEFT puts it on linear layers only; leave target_parameters out")
    if isinstance(method, AdaLoraMethod):
        return _adalora_config(method, steps)
    if isinstance(method, LoraMethod):
        return _peft_config(method)
    if not isinstance(method, LocalizedMethod):
        raise ConfigError("full fine-tuning has no adapter")
    return method.config(seed)


def _peft_config(method: LoraMethod) -> PeftConfig:
    common: dict[str, Any] = {"target_modules": method.target_modules, "task_type": "CAUSAL_LM"}
    r, ranks = method.r, dict(method.ranks)
    if isinstance(method, GraloraMethod):
        if method.r % method.blocks:
            raise ConfigError(f"gralora: r ({method.r}) must be a multiple of blocks ({method.blocks})")
        alpha: Any = method.resolved_alpha  # PEFT says int, and only divides by r
        return GraloraConfig(r=r, alpha=alpha, gralora_dropout=method.dropout, gralora_k=method.blocks, **common)
    if isinstance(method, MissMethod):
        return MissConfig(r=method.own_rank or r, miss_dropout=method.dropout, **common)
    if isinstance(method, HiraMethod):
        return HiraConfig(r=r, hira_dropout=method.dropout, rank_pattern=ranks, **common)
    options: dict[str, Any] = {
        "target_parameters": method.target_parameters,
        "lora_dropout": method.dropout,
        "lora_alpha": method.resolved_alpha,
        "use_rslora": method.use_rslora or method.name == "rslora",
        "use_dora": method.name == "dora",
        "init_lora_weights": _START.get(method.name, True),
        "rank_pattern": ranks,
        "alpha_pattern": {layer: _same_scale(method, rank) for layer, rank in ranks.items()},
    }
    if method.name in _START and options["use_rslora"] and ranks:
        raise ConfigError(f"{method.name}: cannot be saved with use_rslora and ranks together; leave one of them out")
    if isinstance(method, LoraGaMethod):
        options["lora_ga_config"] = LoraGAConfig(
            direction=method.direction, scale=method.scale, stable_gamma=method.stable_gamma
        )
    if isinstance(method, BdLoraMethod):
        wrong = sorted({rank for rank in (r, *ranks.values()) if rank % method.blocks})
        if wrong:
            raise ConfigError(f"bd-lora: ranks must be multiples of blocks ({method.blocks}), got {wrong}")
        options["use_bdlora"] = BdLoraConfig(
            target_modules_bd_a=method.row_sharded, target_modules_bd_b=method.column_sharded, nblocks=method.blocks
        )
    return LoraConfig(r=r, **options, **common)


def _adalora_config(method: AdaLoraMethod, steps: int) -> AdaLoraConfig:
    first, last = method.first_r, method.last_r
    if last >= first:
        raise ConfigError(
            f"adalora: starts with rank {first} and is to end with {last} on average, so there is none to take away; "
            "raise r or init_r, or lower target_r"
        )
    before, after = int(method.initial_share * steps), int(method.final_share * steps)
    if steps - after < max(2, before + 1):  # what it takes away it has to observe for a step at least
        raise ConfigError(
            f"adalora: {steps} steps leave none between initial_share ({before} steps) and final_share ({after}) in "
            "which ranks could fall; raise training.steps or lower these"
        )
    alpha: Any = method.resolved_alpha * first / method.r  # PEFT says int, and only divides by init_r
    return AdaLoraConfig(
        init_r=first,
        target_r=last,
        tinit=before,
        tfinal=after,
        deltaT=method.allocate_every,
        orth_reg_weight=method.orthogonality,
        total_step=steps,
        lora_alpha=alpha,
        lora_dropout=method.dropout,
        target_modules=method.target_modules,
        task_type="CAUSAL_LM",
    )


def _same_scale(method: LoraMethod, rank: int) -> float:
    """The alpha with which a layer of another rank keeps the scale of rank r."""
    ratio = rank / method.r
    return method.resolved_alpha * (math.sqrt(ratio) if method.use_rslora or method.name == "rslora" else ratio)


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
