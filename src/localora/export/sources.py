"""Reads an adapter's dense factors, from a model in memory or from a saved folder without its base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from localora.placement.partition import LABEL_DTYPE, UNPLACED, Partition, PlacementError
from localora.tuner.config import LocalizedConfig
from localora.tuner.factors import scatter_columns, scatter_rows
from localora.tuner.layer import UnplacedAdapterError
from localora.tuner.model import adapted_layers

WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """An adapter as plain factors: layer name in the base model -> (A_dense `(R, n)`, s B_dense `(m, R)`)."""

    config: LocalizedConfig
    factors: dict[str, tuple[Tensor, Tensor]]
    other_tensors: dict[str, Tensor]  # modules_to_save
    conv1d: bool
    complete_suffixes: bool  # whether every base layer with an adapted layer's last name is adapted


def read_model(model: nn.Module, adapter_name: str) -> Adapter:
    """From a model in memory.

    Raises:
        UnplacedAdapterError: the adapter was never placed.
        ValueError: the model has no localora adapter of that name.
    """
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, LocalizedConfig):
        raise ValueError(f"{adapter_name!r} is no localora adapter of this model")
    layers = adapted_layers(model, adapter_name)
    factors = {}
    with torch.no_grad():
        for name, layer in layers:
            layer.local_partition(adapter_name)  # raises when it is unplaced or damaged
            A, B = layer.dense_factors(adapter_name)
            factors[name.removeprefix(PEFT_PREFIX)] = (A.detach().cpu(), B.detach().cpu())
    from peft import get_peft_model_state_dict

    saved = get_peft_model_state_dict(model, adapter_name=adapter_name) if config.modules_to_save else {}
    other = {key: value.detach().cpu() for key, value in saved.items() if ".localized_" not in key}
    suffixes = {name.rpartition(".")[2] for name in factors}
    candidates = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in suffixes and ".base_layer" not in name and hasattr(module, "weight")
    ]
    return Adapter(config, factors, other, any(layer.is_conv1d for _, layer in layers), len(candidates) == len(factors))


def read_folder(folder: Path) -> Adapter:
    """From a folder written by `save_pretrained`; the base model isn't needed.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: an adapter of another method.
        PlacementError, UnplacedAdapterError: tensors that are missing, damaged, or never placed.
    """
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no adapter (no adapter_config.json)")
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LocalizedConfig):
        raise ValueError(f"{folder} holds an adapter of type {config.peft_type}, not a localora adapter")
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}; save the adapter with save_pretrained")
    tensors = load_file(folder / WEIGHTS)
    names = sorted({key.split(".localized_")[0] for key in tensors if ".localized_" in key})
    factors = {name.removeprefix(PEFT_PREFIX): _layer_factors(config, name, tensors) for name in names}
    other = {key: value for key, value in tensors.items() if ".localized_" not in key}
    narrowed = bool(config.exclude_modules or config.layers_to_transform is not None)
    return Adapter(config, factors, other, False, not narrowed and config.target_modules is not None)


def _layer_factors(config: LocalizedConfig, name: str, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    def tensor(key: str) -> Tensor:
        if f"{name}.localized_{key}" not in tensors:
            raise PlacementError(f"the adapter file lacks {name}.localized_{key}; save it again with save_pretrained")
        return tensors[f"{name}.localized_{key}"]

    key = name.removeprefix(PEFT_PREFIX)
    scale = config.layer_scale(key)
    A, B = [], []
    if f"{name}.localized_global_A.weight" in tensors:
        A.append(tensor("global_A.weight"))
        B.append(tensor("global_B.weight") * scale)
    if f"{name}.localized_local_A.weight" in tensors:
        rows, cols = tensor("row_labels"), tensor("col_labels")
        if rows.dtype != LABEL_DTYPE or cols.dtype != LABEL_DTYPE:
            raise PlacementError(f"the labels of {name} must be {LABEL_DTYPE}, got {rows.dtype} and {cols.dtype}")
        local = config.layer_budget(rows.numel(), cols.numel(), config.layer_rank(key)).local
        if local is None:
            raise PlacementError(f"{name} has a local term, which its config does not give it; was the config edited?")
        if (rows == UNPLACED).all():
            raise UnplacedAdapterError(
                f"the adapter was saved before it was placed ({name}); there is nothing to export"
            )
        Partition.from_labels(rows, cols, local.clusters)
        A.append(scatter_columns(tensor("local_A.weight"), cols, local.clusters))
        B.append(scatter_rows(tensor("local_B.weight") * scale, rows, local.clusters))
    if f"{name}.localized_carry_A" in tensors:
        A.append(tensor("carry_A"))
        B.append(tensor("carry_B"))
    return torch.cat(A, dim=0), torch.cat(B, dim=1)
