"""Reads an adapter's dense factors, from a model in memory or from a saved folder without its base model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from localora.adapter.config import LocalizedConfig
from localora.adapter.factors import places_of, scatter
from localora.adapter.layer import UnplacedAdapterError, check_fits
from localora.adapter.model import adapted_layers
from localora.errors import AdapterError, AdapterMissingError
from localora.placement.partition import LABEL_DTYPE, UNPLACED, Partition, PlacementError

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
        raise AdapterError(f"{adapter_name!r} is no localora adapter of this model")
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
    return Adapter(config, factors, other, any(layer.is_conv1d for _, layer in layers), _complete(config, factors))


def _complete(config: LocalizedConfig, names: Iterable[str]) -> bool:
    """Whether the last parts of the layers' names, as target modules, would match these layers and no others."""
    targets = config.target_modules
    if config.exclude_modules or config.layers_to_transform is not None or targets is None or isinstance(targets, str):
        return False
    return set(targets) == {name.rpartition(".")[2] for name in names}


def read_folder(folder: Path) -> Adapter:
    """From a folder written by `save_pretrained`; the base model isn't needed.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: an adapter of another method.
        PlacementError, UnplacedAdapterError: tensors that are missing, damaged, or never placed.
    """
    if not (folder / "adapter_config.json").is_file():
        raise AdapterMissingError(f"{folder} holds no adapter (no adapter_config.json)")
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LocalizedConfig):
        raise AdapterError(f"{folder} holds an adapter of type {config.peft_type}, not a localora adapter")
    if not (folder / WEIGHTS).is_file():
        raise AdapterMissingError(f"{folder} has no {WEIGHTS}; save the adapter with save_pretrained")
    tensors = load_file(folder / WEIGHTS)
    names = sorted({key.split(".localized_")[0] for key in tensors if ".localized_" in key})
    factors = {name.removeprefix(PEFT_PREFIX): _layer_factors(config, name, tensors) for name in names}
    other = {key: value for key, value in tensors.items() if ".localized_" not in key}
    return Adapter(config, factors, other, False, _complete(config, factors))


def _layer_factors(config: LocalizedConfig, name: str, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    def tensor(key: str, *shape: int) -> Tensor:
        full = f"{name}.localized_{key}"
        if full not in tensors:
            raise PlacementError(f"the adapter file lacks {full}; save it again with save_pretrained")
        if shape and tensors[full].shape != shape:
            raise PlacementError(
                f"{full} has shape {tuple(tensors[full].shape)} in the adapter file, but its config needs {shape}; "
                "was one of them edited?"
            )
        return tensors[full]

    key = name.removeprefix(PEFT_PREFIX)
    scale = config.layer_scale(key)
    if any(full.startswith(f"{name}.localized_local_") for full in tensors):
        m, n = tensor("row_labels").numel(), tensor("col_labels").numel()
    else:
        m, n = tensor("global_B.weight").shape[0], tensor("global_A.weight").shape[1]
    budget = config.layer_budget(m, n, config.layer_rank(key))
    A, B = [], []
    if budget.global_rank:
        A.append(tensor("global_A.weight", budget.global_rank, n))
        B.append(tensor("global_B.weight", m, budget.global_rank) * scale)
    if budget.local:
        local = budget.local
        rows, cols = tensor("row_labels", m), tensor("col_labels", n)
        if rows.dtype != LABEL_DTYPE or cols.dtype != LABEL_DTYPE:
            raise PlacementError(f"the labels of {name} must be {LABEL_DTYPE}, got {rows.dtype} and {cols.dtype}")
        if (rows == UNPLACED).all():
            raise UnplacedAdapterError(
                f"the adapter was saved before it was placed ({name}); there is nothing to export"
            )
        check_fits(Partition.from_labels(rows, cols, local.clusters), budget, name)
        A_packed = tensor("local_A.weight", local.rank, local.cols)
        B_packed = tensor("local_B.weight", local.rows, local.rank) * scale
        A.append(scatter(A_packed.T, places_of(cols, local.cols, local.clusters), n, local.clusters).T)
        B.append(scatter(B_packed, places_of(rows, local.rows, local.clusters), m, local.clusters))
    if config.consolidated_rank or f"{name}.localized_frozen_A" in tensors:
        A.append(tensor("frozen_A", config.consolidated_rank, n))
        B.append(tensor("frozen_B", m, config.consolidated_rank))
    return torch.cat(A, dim=0), torch.cat(B, dim=1)
