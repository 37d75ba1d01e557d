"""Two parts of an event: what was learned joins the frozen term, and training starts anew beside it.

Shape legend
    A, B   live factors, dense: (R, n), (m, R)       c   rank of the frozen term, the same in every layer

    consolidate     frozen <- [frozen, live], (c + R, n) and (m, c + R): exactly, so the function does not change
    start anew      factors as at creation (B = 0), and the optimizer's state of them dropped

Parameters stay the same objects, so optimizers, DDP and compiled graphs keep working, and a checkpoint of adapter and
optimizer is all that a resumed run needs.
"""

from __future__ import annotations

import zlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from localora.adapter.expert import Expert
from localora.adapter.factors import joined, whole
from localora.adapter.saved_layers import expected_shapes
from localora.adapter.status import AdapterLayers
from localora.adapter.zero import gathered, whole_shape
from localora.errors import ScheduleError
from localora.lifecycle.optimizer_state import check_forgettable, forget
from localora.lifecycle.passes import Layers
from localora.lifecycle.processes import decide_once
from localora.placement.thin import padded, thin_norm, truncate_factors
from localora.placement.threads import one_thread


def check_possible(model: nn.Module, adapter: AdapterLayers, optimizer: Any) -> None:
    """Refuse, before any training is lost, what no event could handle.

    Raises:
        ScheduleError: factors that FSDP1 took apart, an optimizer that could not forget them, or base weights that
            `frozen="merged"` cannot add to.
    """
    factors: dict[str, nn.Parameter] = {}
    for key, layer in adapter.layers.items():
        shapes = expected_shapes(adapter.budget(key), 0)
        for own, parameter in layer.trained(adapter.name).items():
            shape = shapes[own.removeprefix("localized_").replace(f".{adapter.name}.", ".")]
            if whole_shape(parameter) != shape or not isinstance(parameter, nn.Parameter):
                raise ScheduleError(
                    f"the factors of {key} are no longer parameters of shape {shape}, but of {tuple(parameter.shape)}: "
                    "FSDP1 took them apart, so no event can start them anew. Train with FSDP2, DDP or DeepSpeed, or "
                    "without events (repartition=[], repartition_every=0)"
                )
            factors[f"{key}.{own}"] = parameter
    if optimizer is not None:
        check_forgettable(optimizer, factors)
    if adapter.config.frozen == "merged":
        _check_foldable(model, adapter.layers)


def _check_foldable(model: nn.Module, layers: Layers) -> None:
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for key, layer in layers.items():
        weight: Tensor | None = getattr(layer.get_base_layer(), "weight", None)
        reason = None
        quantized = layer.quantization_backend is not None and not isinstance(layer.get_base_layer(), Expert)
        if quantized or weight is None or not weight.dtype.is_floating_point:
            reason = "quantized, and rounding to its grid would change the function"
        elif hasattr(weight, "full_tensor") or weight.numel() != layer.in_features * layer.out_features:
            reason = "sharded over processes"
        elif uses.get(id(weight), 0) > 1:
            reason = "shared with another layer, which would change too"
        if reason:
            raise ScheduleError(f"frozen='merged' adds to base weights, but that of {key} is {reason}; use 'factors'")


def check_finite(adapter: AdapterLayers) -> None:
    """Raise ScheduleError if a factor holds NaN or infinity, which nobody would want to keep."""
    for key, layer in adapter.layers.items():
        for parameter, factor in layer.trained(adapter.name).items():
            with gathered(factor):
                finite = bool(torch.isfinite(whole(factor.detach())).all())
            if not finite:
                raise ScheduleError(
                    f"{key}.{parameter} is no longer finite, so training has diverged and nothing is consolidated. "
                    "Lower the learning rate and resume from the last checkpoint before this step"
                )


@torch.no_grad()
@one_thread()
def consolidate(adapter: AdapterLayers) -> tuple[float, float]:
    """Let every layer's live update join its frozen term, and the config's `consolidated_rank` say so.

    All layers get the same rank, padded with zeros where they have less, so that one number gives the shapes at load.

    Returns:
        The Frobenius norm over all layers of what joined; the largest relative error by `frozen_rank`, or 0.
    """
    name, config, rank = adapter.name, adapter.config, live_rank(adapter)
    bound = config.frozen_rank if config.consolidated_rank + rank > config.frozen_rank else 0
    squares, errors = 0.0, [0.0]
    for layer in adapter.layers.values():
        A, B = layer.live_factors(name)
        squares += thin_norm(A.double(), B.double()) ** 2
        A, B = padded(A, B, rank)
        if config.frozen == "merged":
            layer.set_frozen(name, A, B)
            layer.fold(name, rank)
            continue
        frozen = layer.frozen_factors(name)
        if frozen is not None:
            A, B = joined(frozen, (A, B))
        if bound:
            device, both = A.device, (A.cpu(), B.cpu())  # one process's device is not another's
            A, B, error = decide_once(partial(_bounded, *both, bound))
            A, B = A.to(device), B.to(device)
            errors.append(error)
        layer.set_frozen(name, A, B)
    config.consolidated_rank = bound or config.consolidated_rank + rank
    return squares**0.5, max(errors)


def live_rank(adapter: AdapterLayers) -> int:
    """The largest rank of any layer's live update: what an event adds to the frozen term's."""
    return max(adapter.budget(key).dense_rank for key in adapter.layers)


def _bounded(A_cn: Tensor, B_mc: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest factors of at most this rank, and the relative change of their product."""
    A, B, error = truncate_factors(A_cn, B_mc, rank)
    return *padded(A, B, rank), error


def start_anew(adapter: AdapterLayers, optimizer: Any, step: int) -> None:
    """Factors as at creation, drawn from the seed, the step and the layer's name; the optimizer forgets them."""
    started: list[nn.Parameter] = []
    for key, layer in adapter.layers.items():
        layer.restart(adapter.name, event_seed(adapter.config.seed, step, key))
        for parameter in layer.trained(adapter.name).values():
            parameter.grad = None
            started.append(parameter)
    if optimizer is not None:
        forget(optimizer, started)


def event_seed(seed: int, step: int, key: str) -> int:
    """Of one layer at one event: events and layers differ, runs and processes do not."""
    return zlib.crc32(f"{seed} {step} {key}".encode())
