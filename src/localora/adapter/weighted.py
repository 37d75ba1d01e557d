"""A weighted sum of adapters as one adapter: exact, since their dense factors stand side by side.

    sum_i w_i dW_i = [w_1 B_1, w_2 B_2, ...] [A_1; A_2; ...]

The sum is the new adapter's frozen term, of one rank in all layers: zeros fill what is missing. Its trained factors
start at zero, as any new adapter's.

Shape legend
    A_i   (R_i, n), B_i (m, R_i): dense factors of adapter i on one layer       R   sum of the R_i
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from localora.adapter.config import LocalizedConfig
from localora.adapter.factors import joined
from localora.adapter.layer import LocalizedLinear
from localora.errors import AdapterError

EXACT = ("linear", "cat")  # one and the same here: PEFT's "linear" adds factors, and so is none


def weighted_config(
    configs: Sequence[LocalizedConfig], weights: Sequence[float], combination_type: str, held: Sequence[str]
) -> LocalizedConfig:
    """The config of the sum, on the layers named `held`, which are all that hold one of the adapters.

    Raises AdapterError for another combination, weights that do not fit, adapters without a sum.
    """
    if combination_type not in EXACT:
        raise AdapterError(
            f"combination_type={combination_type!r} is not supported: localora sums adapters exactly "
            "('linear'). Export them to plain LoRA for PEFT's others"
        )
    if len(configs) != len(weights) or not configs:
        raise AdapterError(f"{len(configs)} adapters with {len(weights)} weights; give one weight for each adapter")
    if not all(isinstance(weight, int | float) and math.isfinite(weight) for weight in weights):
        raise AdapterError(f"weights must be finite numbers, got {list(weights)}")
    if any(config.modules_to_save for config in configs):
        raise AdapterError("adapters with modules_to_save cannot be summed: those modules are no low-rank terms")
    result = copy.deepcopy(configs[0])
    stacks = {name: found[0] for config in configs for name in held if (found := config.stack_of(name))}
    result.target_modules = sorted(set(held) - stacks.keys()) or None
    result.target_parameters = sorted(set(stacks.values())) or None
    result.exclude_modules = result.layers_to_transform = result.layers_pattern = None
    result.placement, result.init_weights, result.of_saved_adapter = "random", True, False
    return result


@torch.no_grad()
def weighted_factors(
    layer: LocalizedLinear, adapters: Sequence[str], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """A `(R, n)` and B `(m, R)` of the sum on one layer, R the sum of its adapters' ranks there."""
    like = next(layer.parameters())  # of a quantized base, the weight would be costly to have
    A, B = (torch.zeros(*shape, device=like.device) for shape in ((0, layer.in_features), (layer.out_features, 0)))
    for name, weight in zip(adapters, weights, strict=True):
        if name in layer.localized_layout:
            layer.local_partition(name)  # raises when it is unplaced
            A_i, B_i = layer.dense_factors(name, torch.float32)
            A, B = joined((A, B), (A_i, weight * B_i))
    return A, B
