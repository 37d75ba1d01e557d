"""A short first training shows where an update lives: a plain LoRA beside each adapted layer, trained and thrown away.

The gradient of a layer is the update it needs seen through the layers around it, which mix its rows and columns; what
training makes of many gradients is not. So clusters that no gradient shows can be found in the probe's update.

Shape legend
    m, n   rows and columns of W      R   rank of the probe      A (R, n), B (m, R)   its factors, dW = B A
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from localora.adapter.config import CpsLoraConfig
from localora.adapter.layer import LocalizedLinear
from localora.lifecycle.passes import CHECK_BATCH, Layers, Passes
from localora.lifecycle.processes import failing_together, sum_over_processes
from localora.lifecycle.random_state import random_state_kept
from localora.placement.budget import LayerBudget

PROBE = "probe_of_calibration"  # its name as an adapter, while it exists
DIVERGED = f"after steps of the probe, which may have diverged: lower probe_lr, or {CHECK_BATCH}"

Factors = tuple[Tensor, Tensor]


def probe_updates(passes: Passes, layers: Layers, name: str, config: CpsLoraConfig) -> dict[str, Factors]:
    """B `(m, R)` and A `(R, n)` of each layer's update after `config.probe_steps` steps of Adam, one batch each.

    The batches of `passes` are gone through in order, and again from the first if there are fewer than steps. Only the
    probe's factors are trained, in float32 or wider; everything else of the model, and the random state, is as before.
    In a distributed run each process takes its own batches and all take the same steps, on the sum of the gradients.

    Raises:
        CalibrationError: a loss that is not finite; where the probe may have diverged, the message says so.
    """
    with random_state_kept(), passes.watching({}) as freeze, _probes(layers, name, config) as parameters:
        freeze()  # adding an adapter lets the others train again
        before = passes.first_loss()
        optimizer = torch.optim.Adam(parameters, lr=config.probe_lr)
        for step in range(config.probe_steps):
            with failing_together():
                number = step % len(passes.batches)
                passes.backward(passes.batches[number], number + 1, freeze, DIVERGED if step else CHECK_BATCH)
            _step(parameters, optimizer)
        after = passes.first_loss(DIVERGED)
        factors = {key: _factors(layer) for key, layer in layers.items()}
    if after > before:
        warnings.warn(
            f"the probe took the loss of the first batch from {before:.4g} to {after:.4g}, so the clusters of its "
            "update mean little; lower probe_lr",
            stacklevel=2,
        )
    return factors


def rank_of_probe(config: CpsLoraConfig, budget: LayerBudget) -> int:
    """R on a layer with a local term: the config's, or twice the rank of all clusters together; at most min(m, n)."""
    assert budget.local is not None  # layers without one have nothing to place
    return min(config.probe_rank or 2 * budget.local.clusters * budget.local.rank, budget.m, budget.n)


@contextmanager
def _probes(layers: Layers, name: str, config: CpsLoraConfig) -> Iterator[list[nn.Parameter]]:
    """While active, each layer has one adapter more, plain LoRA of scale 1 from a zero update; yields its factors."""
    before = {key: layer.active_adapter for key, layer in layers.items()}
    generator = torch.Generator().manual_seed(config.seed)
    try:
        yield [factor for layer in layers.values() for factor in _add_probe(layer, name, config, generator)]
    finally:
        for key, layer in layers.items():
            layer._active_adapter = before[key]
            layer.delete_adapter(PROBE)


def _add_probe(
    layer: LocalizedLinear, name: str, config: CpsLoraConfig, generator: torch.Generator
) -> tuple[nn.Parameter, nn.Parameter]:
    budget = layer.localized_layout[name].budget
    rank = rank_of_probe(config, budget)
    layer._active_adapter = [*layer.active_adapters, PROBE]
    layer.add_adapter(
        PROBE, LayerBudget(budget.m, budget.n, rank, None), scale=1.0, dropout=0.0, zero_init=True, inference_mode=False
    )
    modules = layer.localized_global_A[PROBE], layer.localized_global_B[PROBE]
    for module in modules:  # it follows the base layer's dtype, and half precision would lose small steps
        module.to(torch.promote_types(module.get_parameter("weight").dtype, torch.float32))
    A, B = (module.get_parameter("weight") for module in modules)
    start = nn.init.kaiming_uniform_(torch.empty(rank, budget.n), a=math.sqrt(5), generator=generator)
    with torch.no_grad():
        A.copy_(start)  # the same in every process
    return A, B


def _factors(layer: LocalizedLinear) -> Factors:
    A, B = layer.dense_factors(PROBE)
    return B.detach(), A.detach()


def _step(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """One step on the sum of the processes' gradients; its scale is nothing to Adam."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:  # an expert that no token was routed to here, but perhaps in another process
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    sum_over_processes(gradients)
    optimizer.step()
    optimizer.zero_grad()
