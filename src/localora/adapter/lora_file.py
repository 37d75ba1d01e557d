"""Factors of plain LoRA adapters that PEFT saved, read without their base model.

Shape legend
    A (r, n), B (m, r)      dW = s B A,  s = alpha / r, or alpha / sqrt(r) with use_rslora
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

from localora.adapter.adapter_file import WEIGHTS
from localora.adapter.saved_layers import PEFT_PREFIX
from localora.errors import AdapterError

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # the saved base is not the one training started from


def read_lora_folder(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Config and tensors of a saved LoRA. Raises AdapterError if there are no weights."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise AdapterError(f"{folder} has no {WEIGHTS}; save the adapter with save_pretrained (safetensors)")
    config = PeftConfig.from_pretrained(str(folder))
    assert isinstance(config, LoraConfig)
    return config, load_file(path)


def lora_factors(config: LoraConfig, tensors: dict[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], list[str]]:
    """Layer name -> (s B `(m, r)`, A `(r, n)`), and the names of what is no pair of 2-D factors.

    Raises:
        AdapterError: dW is not s B A, or a factor lacks its partner, or a rank contradicts the config.
    """
    _refuse_other_updates(config)
    factors, used = {}, set()
    for key, A in tensors.items():
        saved_name, is_A, _ = key.partition(".lora_A.weight")
        if not is_A or A.ndim != 2:
            continue
        B_key = f"{saved_name}.lora_B.weight"
        B = tensors.get(B_key)
        if B is None or B.ndim != 2 or B.shape[1] != A.shape[0]:
            partner = "is missing" if B is None else f"has shape {tuple(B.shape)}"
            raise AdapterError(f"{key} has shape {tuple(A.shape)}, {B_key} {partner}; the adapter file is damaged")
        name = saved_name.removeprefix(PEFT_PREFIX)
        r = _from_pattern(config.rank_pattern, name, config.r)
        if r != A.shape[0]:
            raise AdapterError(f"{name} has rank {A.shape[0]}, its config says {r}; was adapter_config.json edited?")
        alpha = _from_pattern(config.alpha_pattern, name, config.lora_alpha)
        factors[name] = (B.double() * (alpha / math.sqrt(r) if config.use_rslora else alpha / r), A.double())
        used |= {key, B_key}
    if not factors:
        raise AdapterError("the adapter has no lora_A and lora_B matrices")
    return factors, [key.removeprefix(PEFT_PREFIX) for key in tensors if key not in used]


def _from_pattern(pattern: dict[str, Any] | None, name: str, default: Any) -> Any:
    pattern = pattern or {}
    return pattern.get(get_pattern_key(list(pattern), name), default)


def _refuse_other_updates(config: LoraConfig) -> None:
    if config.use_dora:
        raise AdapterError(
            "a DoRA adapter's update depends on the base weights; merge it and save the model, which leaves "
            "two checkpoints to compare"
        )
    if getattr(config, "target_parameters", None):
        raise AdapterError(
            "LoRA on target_parameters (stacked experts) is not a matrix a layer; merge it and save "
            "the model, which leaves two checkpoints to compare"
        )
    start = config.init_lora_weights
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise AdapterError(
            f"init_lora_weights={start!r} moved part of the base weights into the adapter, so B A is not the update; "
            "save it with save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes it one"
        )
