"""predict_cost: put the adapter on a model of shapes only, and read off what it would take.

The adapter is really injected, by PEFT, into a model on the meta device. So target modules, rank patterns and modules
to save mean here what they mean in training, and no second copy of those rules can drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import PretrainedConfig

from localora.adapter.config import LocalizedConfig
from localora.adapter.expert import Expert
from localora.adapter.status import adapted_layers, frozen_rank_after
from localora.arguments import check_count, check_kind
from localora.errors import ConfigError
from localora.export.engines import on_grid
from localora.export.experts import expert_tensors
from localora.lab.cost.calibration import PLANNER_BYTES, CalibrationBytes, Observed
from localora.lab.cost.report import CostReport
from localora.lab.cost.shapes import adapted_shapes, meta_model, model_config

ADAM_BYTES = 8  # two float32 moments a parameter
HEADER_BYTES = 64  # of a tensor in the header of a safetensors file, beside its name


class Adapted(NamedTuple):
    """A matrix of m outputs and n inputs, or so many of them where PEFT's LoRA has one layer for a stack of experts.

    `rank` is that of its update as plain LoRA, `r` the LoRA-equivalent one.
    """

    m: int
    n: int
    rank: int
    r: int
    matrices: int = 1


def predict_cost(
    model_name_or_config: str | Path | PretrainedConfig,
    peft_config: PeftConfig,
    tokens: int = 2048,
    dtype: torch.dtype = torch.bfloat16,
) -> CostReport:
    """Predict what an adapter takes, without weights.

    Args:
        model_name_or_config: `llama-3-1b`, `-8b`, `-70b` or `smollm2-135m`, whose shapes are known here; a folder with
            a config.json; a Hub id (only its config is read); or a config.
        peft_config: a localora config, or `peft.LoraConfig` to compare with. It is not changed.
        tokens: tokens in a calibration batch.
        dtype: of the frozen base; PEFT keeps the adapter in float32 beside a half-precision base.

    Raises:
        ModelError: no such model.
        TypeError: a config of another method.
        ValueError: the adapter does not fit the model, as `get_peft_model` would say.
    """
    # AdaLoRA's config is a LoraConfig, too, and its cost is another.
    if isinstance(peft_config, AdaLoraConfig) or not isinstance(peft_config, (LocalizedConfig, LoraConfig)):
        raise ConfigError(
            f"costs are known for localora's configs and peft.LoraConfig, got {type(peft_config).__name__}"
        )
    check_count("predict_cost", "tokens", tokens)
    check_kind("predict_cost", "dtype", dtype, torch.dtype, "a torch.dtype")
    check_kind(
        "predict_cost",
        "the model",
        model_name_or_config,
        (str, Path, PretrainedConfig),
        "its name, its folder or its config (of a model in memory: model.config)",
    )
    name, config = model_config(model_name_or_config)
    base = meta_model(name, config, dtype)
    base_parameters = sum(p.numel() for p in base.parameters())
    base_bytes = sum(p.numel() * p.element_size() for p in base.parameters())

    model = adapted_shapes(base, peft_config)
    trained = [p for p in model.parameters() if p.requires_grad]
    trainable = sum(p.numel() for p in trained)
    frozen_rank = _frozen_rank(model)
    layers = _adapted(model, frozen_rank)
    exact_rank = max(layer.rank for layer in layers.values())
    exported_rank = on_grid(exact_rank)
    calibration = _calibration(model, tokens, dtype)
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {key: (t.dtype, tuple(t.shape)) for key, t in saved.items() if ".localized_frozen_" not in key}
    for name_of_layer, layer in layers.items() if frozen_rank else ():
        tensors[f"base_model.model.{name_of_layer}.localized_frozen_A"] = (torch.float32, (frozen_rank, layer.n))
        tensors[f"base_model.model.{name_of_layer}.localized_frozen_B"] = (torch.float32, (layer.m, frozen_rank))
    return CostReport(
        model=name,
        method=peft_config.method if isinstance(peft_config, LocalizedConfig) else "lora",
        r=peft_config.r,
        tokens=tokens,
        layers=sum(layer.matrices for layer in layers.values()),
        base_parameters=base_parameters,
        base_bytes=base_bytes,
        trainable=trainable,
        lora_trainable=sum(x.matrices * x.r * (x.m + x.n) for x in layers.values()),
        stored=trainable + sum(frozen_rank * (x.m + x.n) for x in layers.values()),
        exact_rank=exact_rank,
        exported_rank=exported_rank,
        adapter_bytes=safetensors_bytes(tensors),
        export_bytes=_export_bytes(peft_config, layers, exported_rank),
        gradient_bytes=sum(p.numel() * p.element_size() for p in trained),
        optimizer_bytes=ADAM_BYTES * trainable,
        calibration_kept=calibration.kept,
        calibration_working=calibration.working,
    )


def _frozen_rank(model: PeftModel) -> int:
    """Of the frozen term when all events of a schedule in fractions are over."""
    config = model.peft_config["default"]
    if not isinstance(config, LocalizedConfig):
        return 0
    budgets = [layer.localized_layout["default"].budget for _, layer in adapted_layers(model, "default")]
    return frozen_rank_after(budgets, config, len(set(config.repartition)))


def _adapted(model: PeftModel, frozen_rank: int) -> dict[str, Adapted]:
    """By name of the layer."""
    config, base = model.peft_config["default"], model.get_base_model()
    if isinstance(config, LocalizedConfig):
        return {
            name: Adapted(
                layer.out_features,
                layer.in_features,
                layer.localized_layout["default"].budget.dense_rank + frozen_rank,
                config.layer_rank(name),
            )
            for name, layer in adapted_layers(base, "default")
        }
    layers = {name: layer for name, layer in base.named_modules() if isinstance(layer, LoraLayer)}
    return {
        name: Adapted(int(layer.out_features or 0), int(layer.in_features or 0), r, r, getattr(layer, "num_experts", 1))
        for name, layer in layers.items()
        for r in [layer.r["default"]]
    }


def _calibration(model: PeftModel, tokens: int, dtype: torch.dtype) -> CalibrationBytes:
    config = model.peft_config["default"]
    if not isinstance(config, LocalizedConfig) or config.global_share == 1:
        return CalibrationBytes(0, 0)
    layers: Sequence[Observed] = [
        (x.out_features, x.in_features, x.in_features if isinstance(x.get_base_layer(), Expert) else tokens)
        for _, x in adapted_layers(model, "default")
    ]
    return PLANNER_BYTES[config.planner](layers, config, dtype)


def _export_bytes(config: PeftConfig, layers: dict[str, Adapted], rank: int) -> int:
    pairs = {
        name: (torch.empty(x.matrices * rank, x.n, device="meta"), torch.empty(x.m, rank * x.matrices, device="meta"))
        for name, x in layers.items()
    }
    tensors = expert_tensors(config, pairs) if isinstance(config, LocalizedConfig) else {}
    for name, (A, B) in pairs.items():
        if not isinstance(config, LocalizedConfig) or config.stack_of(name) is None:
            tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    return safetensors_bytes({f"base_model.model.{key}": (t.dtype, tuple(t.shape)) for key, t in tensors.items()})


def safetensors_bytes(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> int:
    """The size of a file of tensors of these types and shapes before it is written, within some bytes a tensor."""
    return sum(len(name) + HEADER_BYTES + prod(shape) * dtype.itemsize for name, (dtype, shape) in tensors.items())
