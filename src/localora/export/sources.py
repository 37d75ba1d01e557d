"""Reads an adapter's dense factors, from a model in memory or from a saved folder without its base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from localora.adapter.adapter_file import read_adapter
from localora.adapter.config import LocalizedConfig
from localora.adapter.saved_layers import PEFT_PREFIX
from localora.adapter.status import adapter_in


@dataclass(frozen=True)
class Adapter:
    """An adapter as plain factors: layer name in the base model -> (A_dense `(R, n)`, s B_dense `(m, R)`)."""

    config: LocalizedConfig
    factors: dict[str, tuple[Tensor, Tensor]]
    other_tensors: dict[str, Tensor]  # modules_to_save
    conv1d: bool

    @property
    def complete_suffixes(self) -> bool:
        """Whether the last parts of the layers' names, as target modules, match these layers and no others."""
        config, targets = self.config, self.config.target_modules
        if config.exclude_modules or config.layers_to_transform is not None or not isinstance(targets, (set, list)):
            return False
        return set(targets) == {name.rpartition(".")[2] for name in self.factors if config.stack_of(name) is None}


def read_model(model: nn.Module, adapter_name: str) -> Adapter:
    """From a model in memory. AdapterError if it has no such adapter, UnplacedAdapterError if it was never placed."""
    adapter = adapter_in(model, adapter_name)
    config, layers = adapter.config, adapter.layers
    factors = {}
    with torch.no_grad():
        for name, layer in layers.items():
            layer.local_partition(adapter_name)  # raises when it is unplaced or damaged
            A, B = layer.dense_factors(adapter_name)
            factors[name.removeprefix(PEFT_PREFIX)] = (A.detach().cpu(), B.detach().cpu())
    from peft import get_peft_model_state_dict

    saved = get_peft_model_state_dict(model, adapter_name=adapter_name) if config.modules_to_save else {}
    other = {key: value.detach().cpu() for key, value in saved.items() if ".localized_" not in key}
    return Adapter(config, factors, other, any(layer.is_conv1d for layer in layers.values()))


def read_folder(folder: Path) -> Adapter:
    """From a folder written by `save_pretrained`. Raises as :func:`read_adapter`, and UnplacedAdapterError."""
    saved = read_adapter(folder)
    saved.check_placed()
    factors = {name: layer.dense_factors() for name, layer in sorted(saved.layers.items())}
    return Adapter(saved.config, factors, saved.others, False)
