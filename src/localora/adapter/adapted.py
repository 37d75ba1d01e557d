"""The layers of a model that hold an adapter, which adapters act, and where."""

from __future__ import annotations

from torch import nn

from localora.adapter.layer import LocalizedLinear
from localora.arguments import check_model
from localora.errors import AdapterError
from localora.placement.partition import Placement


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


def placement_of(model: nn.Module, adapter_name: str = "default") -> dict[str, Placement]:
    """Where an adapter acts: layer name in `model` -> its stack of partitions.

    Raises:
        UnplacedAdapterError: the adapter was never placed.
        ValueError: no layer holds an adapter of that name.
    """
    check_model("placement_of", model)
    layers = adapted_layers(model, adapter_name)
    if not layers:
        raise AdapterError(f"no layer of this model holds a localora adapter named {adapter_name!r}")
    return {name: layer.placement(adapter_name) for name, layer in layers}
