"""Which layers get an adapter: those that cannot have one, names that hit nothing, layers too small for what was asked.

All of it is said, by name, when the adapter is made.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.quantization_utils import resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D

from localora.adapter.config import LocalizedConfig
from localora.adapter.layer import LocalizedLinear
from localora.adapter.options import nearest
from localora.adapter.status import adapted_layers
from localora.errors import ConfigError, LayerError, listed

try:
    from peft.utils.error import NoMatchingPeftModuleError as NoMatchingPeftModuleError  # the tuner model has it too
except ImportError:  # PEFT 0.20
    NoMatchingPeftModuleError = ValueError  # type: ignore[misc, assignment]  # a kind of it from 0.21 on

SHOWN = 12  # shapes in a message
MAMBA_TYPES = {"falcon_h1", "mamba", "mamba2", "falcon_mamba"}
MAMBA_FUSED = {"conv1d", "out_proj"}


class TargetError(ConfigError, NoMatchingPeftModuleError):
    """`target_modules` and what narrows it down match no layer."""


def check_supported(target: nn.Module, key: str, quantization: dict[str, Any]) -> None:
    """Raise LayerError unless the module called `key` is a linear layer that is used as one."""
    if isinstance(target, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise LayerError(
            f"layer {key} is the output projection of a torch.nn.MultiheadAttention, which reads its weight directly "
            "and would bypass the adapter. Leave it out of target_modules"
        )
    backend = resolve_quantization_backend(target, **quantization)
    linear_backend = backend is not None and backend.layer_type == "linear"
    if not (isinstance(target, (nn.Linear, Conv1D)) or linear_backend):
        gguf = type(target).__name__ == "GgufLinear"
        remedy = "Load the model with GgufConfig(dequantize=True)" if gguf else "Leave it out of target_modules"
        raise LayerError(
            f"layer {key} is a {type(target).__name__}; localora adapts torch.nn.Linear, transformers' Conv1D and "
            f"linear layers of PEFT's quantization backends. {remedy}"
        )


def check_not_fused(model: nn.Module, target_name: str) -> None:
    """Raise LayerError for a weight that Mamba's fused kernels read directly, bypassing the adapter."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in MAMBA_TYPES and target_name in MAMBA_FUSED:
        raise LayerError(
            f"the module {target_name!r} of a {model_type} model cannot be adapted: its fused kernel reads the "
            "weight directly. Leave it out of target_modules"
        )


def keep_readable(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew on a CPU, as it does at the first pass in eval mode.

    Through a weight packed so no gradient flows, and it can no longer be read (bitsandbytes 0.50, on processors with
    AVX512-BF16): training after an evaluation would go wrong without a word. Of all layers, since gradients flow
    through those without an adapter too. Raises LayerError if one is packed already.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise LayerError(
                f"the 4-bit weight of {name} was packed for inference on this CPU when the model ran in eval mode, and "
                "bitsandbytes can neither train through it nor give it back. Load the model again, and add the adapter "
                "before the model is run"
            )
        module.support_avx512bf16_for_cpu = False


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
    return f"The linear layers of this model are called {listed(named)}."


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
