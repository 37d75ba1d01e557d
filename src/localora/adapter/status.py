"""What a model has of an adapter: the layers that hold it, whether it acts, where, and how large it is.

The three numbers of its size are those that a comparison needs side by side.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from localora.adapter.config import LocalizedConfig
from localora.adapter.layer import LocalizedLinear
from localora.arguments import check_model
from localora.errors import AdapterError
from localora.placement.budget import LayerBudget, LocalShape
from localora.placement.partition import Partition, Placement


def adapted_layers(model: nn.Module, adapter_name: str) -> list[tuple[str, LocalizedLinear]]:
    """The layers that hold this adapter, with their names in `model`."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, LocalizedLinear) and adapter_name in module.localized_layout
    ]


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the localora adapters that act in a forward pass.

    The layers are asked, since models disagree on how to say it: a property, a method, or not at all.
    """
    layers = [module for module in model.modules() if isinstance(module, LocalizedLinear)]
    return list(dict.fromkeys(name for x in layers for name in x.active_adapters if name in x.localized_layout))


def seed_of(*parts: object, key: str) -> int:
    """For what is drawn for one layer: layers differ; runs, processes and a model compiled or not do not."""
    return zlib.crc32(" ".join([*map(str, parts), key.replace("_orig_mod.", "")]).encode())


@dataclass(frozen=True)
class AdapterLayers:
    """One adapter of a model: its name, its config, and the layers that hold it, by their names in the model."""

    name: str
    config: LocalizedConfig
    layers: dict[str, LocalizedLinear]

    def budget(self, key: str) -> LayerBudget:
        """The fixed shapes of the adapter on a layer."""
        return self.layers[key].localized_layout[self.name].budget

    def local_shape(self, key: str) -> LocalShape:
        """The fixed shape of the local term on a layer that has one."""
        local = self.budget(key).local
        assert local is not None  # layers without one have nothing to place and are left out before
        return local

    def partition(self, key: str) -> Partition:
        """The present partition of the local term on a layer that has one."""
        partition = self.layers[key].local_partition(self.name)
        assert partition is not None
        return partition

    def with_choice(self) -> AdapterLayers:
        """The same with those layers alone on which labels decide something."""
        return replace(self, layers={key: layer for key, layer in self.layers.items() if self.budget(key).has_choice})


def adapter_in(model: nn.Module, adapter_name: str) -> AdapterLayers:
    """The adapter of this name. Raises AdapterError if the model has none."""
    config = getattr(model, "peft_config", {}).get(adapter_name)
    layers = dict(adapted_layers(model, adapter_name))
    if not (isinstance(config, LocalizedConfig) and layers):
        raise AdapterError(f"no layer of this model holds a localora adapter named {adapter_name!r}")
    return AdapterLayers(adapter_name, config, layers)


def placement_of(model: nn.Module, adapter_name: str = "default") -> dict[str, Placement]:
    """Where an adapter acts: layer name in `model` -> its stack of partitions.

    Raises:
        UnplacedAdapterError: the adapter was never placed.
        AdapterError: no layer holds an adapter of that name.
    """
    check_model("placement_of", model)
    return {key: layer.placement(adapter_name) for key, layer in _held(model, adapter_name)}


def _held(model: nn.Module, adapter_name: str) -> list[tuple[str, LocalizedLinear]]:
    layers = adapted_layers(model, adapter_name)  # also of a wrapper, such as DDP's, which has no configs
    if not layers:
        raise AdapterError(f"no layer of this model holds a localora adapter named {adapter_name!r}")
    return layers


@dataclass(frozen=True)
class AdapterSize:
    """Of all layers together.

    Attributes:
        trainable: parameters with a gradient, those of LoRA at the equivalent rank.
        stored: parameters that a forward pass uses and the adapter file holds: the frozen term's too; without labels.
        rank: the largest rank of any layer's update, which is that of the exact export before padding.
    """

    trainable: int
    stored: int
    rank: int


def adapter_size(model: nn.Module, adapter_name: str = "default") -> AdapterSize:
    """Of an adapter as it is now, without `modules_to_save`. Raises AdapterError if no layer holds it."""
    layers = [layer for _, layer in _held(model, adapter_name)]
    frozen = [factors for layer in layers if (factors := layer.frozen_factors(adapter_name)) is not None]
    rank = max((len(A) for A, _ in frozen), default=0)
    return size_of_budgets((layer.localized_layout[adapter_name].budget for layer in layers), rank)


def size_of_budgets(budgets: Iterable[LayerBudget], consolidated_rank: int = 0) -> AdapterSize:
    """From shapes alone, with a frozen term of the given rank."""
    budgets = list(budgets)
    trainable = sum(budget.parameters for budget in budgets)
    frozen = sum(consolidated_rank * (budget.m + budget.n) for budget in budgets)
    rank = max((budget.dense_rank for budget in budgets), default=0)
    return AdapterSize(trainable, trainable + frozen, rank + consolidated_rank)


def frozen_rank_after(budgets: Iterable[LayerBudget], config: LocalizedConfig, events: int) -> int:
    """Rank of the frozen term after so many events more: each adds the largest rank of a layer's live update."""
    rank = config.consolidated_rank + events * max((budget.dense_rank for budget in budgets), default=0)
    return min(rank, config.frozen_rank or rank)
