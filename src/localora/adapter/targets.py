"""Which layers `target_modules` hit: the ones it names in vain, and the ones too small for what was asked of them."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from localora.adapter.adapted import adapted_layers
from localora.adapter.config import LocalizedConfig
from localora.adapter.layer import LocalizedLinear
from localora.adapter.options import nearest
from localora.adapter.peft_0_20 import NoMatchingPeftModuleError
from localora.errors import ConfigError

SHOWN = 12  # names in a message


class TargetError(ConfigError, NoMatchingPeftModuleError):
    """`target_modules` and what narrows it down match no layer."""


def linear_layers_of(model: nn.Module) -> str:
    """A sentence that lists the linear layers by the last part of their names, and how many there are of each."""
    counts = Counter(
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in model.named_modules()
        if name and isinstance(module, (nn.Linear, Conv1D)) and ".localized_" not in name
    )
    if not counts:
        return "This model has no linear layer."
    named = [f"{name} ({count})" if count > 1 else name for name, count in sorted(counts.items())]
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return f"The linear layers of this model are called {', '.join(named[:SHOWN])}{more}."


def tell_of_targets(model: nn.Module, adapter_name: str, config: LocalizedConfig) -> None:
    """Warn of names in `target_modules` that no layer has, and once of all layers that got less than was asked for."""
    layers = adapted_layers(model, adapter_name)
    if isinstance(config.target_modules, set):
        _warn_of_unmatched(model, config.target_modules, [name for name, _ in layers])
    _warn_of_small(layers, adapter_name)


def _warn_of_unmatched(model: nn.Module, targets: Iterable[str], adapted: list[str]) -> None:
    everything = [name for name, module in model.named_modules() if not isinstance(module, BaseTunerLayer)]
    unmatched = [
        target
        for target in sorted(targets)
        if not any(name == target or name.endswith(f".{target}") for name in (*adapted, *everything))
    ]
    if unmatched:
        hint = nearest(unmatched[0], {name.rpartition(".")[2] for name in adapted + everything})
        warnings.warn(
            f"target_modules names {', '.join(map(repr, unmatched))}, which no layer is called: nothing is adapted "
            f"there{hint or '.'} {linear_layers_of(model)}",
            stacklevel=2,
        )


def _warn_of_small(layers: list[tuple[str, LocalizedLinear]], adapter_name: str) -> None:
    """Layers of one shape and last name that got the same are told of together."""
    groups: dict[tuple[str, int, int, str], list[str]] = defaultdict(list)
    for name, layer in layers:
        budget = layer.localized_layout[adapter_name].budget
        if budget.compromise:
            groups[name.rpartition(".")[2], budget.m, budget.n, budget.compromise].append(name)
    if not groups:
        return
    told = [
        f"{names[0]}{f' and {len(names) - 1} like it' if len(names) > 1 else ''} ({m} x {n}) has {compromise}"
        for (_, m, n, compromise), names in groups.items()
    ]
    more = f"; and {len(told) - SHOWN} more shapes" if len(told) > SHOWN else ""
    warnings.warn(
        f"{sum(map(len, groups.values()))} of {len(layers)} layers cannot hold what was asked for, and got what they "
        f"can at the same number of parameters: {'; '.join(told[:SHOWN])}{more}",
        stacklevel=2,
    )
