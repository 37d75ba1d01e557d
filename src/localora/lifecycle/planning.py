"""From batches to labels: observe the signal a method needs, sum it over processes, and ask the method's planner.

Shape legend
    x   (T, n) inputs of a layer      g   (T, m) gradient by its output      W   (m, n) its frozen weight
"""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from localora.adapter.config import CpsLoraConfig, GLoraConfig, LocalizedConfig
from localora.adapter.layer import LocalizedLinear
from localora.lifecycle.observe import Observer
from localora.lifecycle.passes import CalibrationError, Layers, Passes, ZeroGradientError
from localora.lifecycle.processes import decide_once, sum_over_processes
from localora.lifecycle.report import LayerReport
from localora.placement.budget import LocalShape
from localora.placement.captured import captured_energy
from localora.placement.coclustering import CoclusteringResult, plan_coclusters
from localora.placement.partition import Partition
from localora.placement.random import random_partition
from localora.placement.sketch import GradientSketch, SharedInputs
from localora.placement.taylor import TaylorScores, plan_block
from localora.placement.threads import over_threads

IN_CALIBRATION = "calibration: does the loss depend on the model's output, and does the loss_fn use the model given?"


def plan_blocks(passes: Passes, layers: Layers, name: str, config: GLoraConfig) -> dict[str, LayerReport]:
    """G-LoRA: Taylor scores, then the block of the highest."""
    scores = _taylor_scores(passes, layers, {}, passes.batches)
    silent = _silent(scores)
    blocks = _choose_blocks(scores, silent, layers, name, config)
    # The share inside the final block is known only after it is chosen: one more pass, over the last batch.
    measured = _taylor_scores(passes, layers, blocks, passes.batches[-1:])
    return {
        key: LayerReport(key, blocks[key], importance_share=measured[key].inside_share, at_random=key in silent)
        for key in layers
    }


@dataclass(frozen=True)
class Proposal:
    """A new partition for a layer that has one, and what the old and the new one capture of the same signal."""

    partition: Partition
    captured_before: float
    captured_after: float


@dataclass(frozen=True)
class Planner:
    """How a method places: from batches, at an event, and from another LoRA's update, if it can.

    Attributes:
        passes: of a number of batches, how many backward passes `plan` makes.
    """

    plan: Callable[[Passes, Layers, str, Any], dict[str, LayerReport]]
    propose: Callable[[Passes, Layers, str, Any, Mapping[str, Partition] | None], dict[str, Proposal]]
    passes: Callable[[int], int]
    from_update: Callable[[str, LocalizedLinear, str, Any, Tensor, Tensor], LayerReport] | None


def propose(
    passes: Passes, layers: Layers, name: str, config: LocalizedConfig, given: Mapping[str, Partition] | None = None
) -> dict[str, Proposal]:
    """Each placed layer's next partition, by the planner of its method.

    Partitions that are `given` are not planned: one batch shows what they capture.
    """
    return PLANNERS[config.planner].propose(passes, layers, name, config, given)


def _propose_blocks(
    passes: Passes, layers: Layers, name: str, config: GLoraConfig, given: Mapping[str, Partition] | None
) -> dict[str, Proposal]:
    def shares(blocks: Mapping[str, Partition]) -> dict[str, float]:
        return {key: s.inside_share for key, s in _taylor_scores(passes, layers, blocks, passes.batches[-1:]).items()}

    before = shares({key: partition_of(layer, name) for key, layer in layers.items()})
    if given is not None:
        after = shares(given)
        return {key: Proposal(partition, before[key], after[key]) for key, partition in given.items()}
    planned = plan_blocks(passes, layers, name, config)
    return {
        key: Proposal(report.partition, before[key], report.importance_share or 0.0) for key, report in planned.items()
    }


def _propose_clusters(
    passes: Passes, layers: Layers, name: str, config: CpsLoraConfig, given: Mapping[str, Partition] | None
) -> dict[str, Proposal]:
    sketches = gradient_sketches(passes, layers, config, None if given is None else passes.batches[:1])
    silent = _silent(sketches) if given is None else set()

    def propose_one(key: str) -> Proposal:
        layer, old = layers[key], partition_of(layers[key], name)
        if key in silent:
            return Proposal(_at_random(key, layer, name, config), 0.0, 0.0)
        left, right = sketches.pop(key).factors()  # popped: the memory of a sketch is free once it is planned on
        if given is not None:
            rank = local_shape(layer, name).rank
            before, after = (captured_energy(left, right, partition, rank) for partition in (old, given[key]))
            return Proposal(given[key], before, after)
        result = _coclusters(layer, name, config, left, right, old)
        assert result.start_energy is not None
        return Proposal(result.partition, result.start_energy, result.captured_energy)

    return decide_once(lambda: dict(zip(layers, over_threads(propose_one, layers), strict=True)))


def block_passes(batches: int) -> int:
    """How many backward passes :func:`plan_blocks` makes."""
    return batches + 1


def plan_clusters(passes: Passes, layers: Layers, name: str, config: CpsLoraConfig) -> dict[str, LayerReport]:
    """CPS-LoRA: a sketch of the summed gradient, then its co-clusters."""
    sketches = gradient_sketches(passes, layers, config)
    silent = _silent(sketches)

    def plan_one(key: str) -> LayerReport:
        if key in silent:
            partition = _at_random(key, layers[key], name, config)
            return LayerReport(key, partition, captured_energy=0.0, at_random=True)
        left, right = sketches.pop(key).factors()  # popped: the memory of a sketch is free once it is planned on
        return cocluster(key, layers[key], name, config, left, right)

    return decide_once(lambda: dict(zip(layers, over_threads(plan_one, layers), strict=True)))


def gradient_sketches(
    passes: Passes, layers: Layers, config: CpsLoraConfig, batches: list[Any] | None = None
) -> dict[str, GradientSketch]:
    """Sketches of each layer's gradient, summed over the batches (default all) and the processes."""
    inputs = SharedInputs()
    sketches = {
        key: GradientSketch(layer.out_features, layer.in_features, config.sketch, config.seed, inputs=inputs)
        for key, layer in layers.items()
    }
    passes.run(
        layers,
        {key: sketch.observe for key, sketch in sketches.items()},
        passes.batches if batches is None else batches,
    )
    inputs.forget()
    sum_signals(sketches)
    return sketches


def local_shape(layer: LocalizedLinear, name: str) -> LocalShape:
    """The fixed shape of an adapter's local term on a layer that has one."""
    local = layer.localized_layout[name].budget.local
    assert local is not None  # layers without one have nothing to place and are left out before
    return local


def partition_of(layer: LocalizedLinear, name: str) -> Partition:
    """The present partition of an adapter's local term on a layer that has one."""
    partition = layer.local_partition(name)
    assert partition is not None
    return partition


def _taylor_scores(
    passes: Passes, layers: Layers, within: Mapping[str, Partition], batches: list[Any]
) -> dict[str, TaylorScores]:
    scores = {
        key: TaylorScores(layer.out_features, layer.in_features, within.get(key)) for key, layer in layers.items()
    }

    for key, layer in layers.items():
        if layer.quantization_backend is not None and not layer.quantization_backend.supports_merge:
            raise CalibrationError(
                f"G-LoRA's importance is |weight * gradient|, and {key} is a {layer.quantization_backend.backend_name} "
                "layer, which does not give its weight back. Use CPS-LoRA, which needs the gradient alone, or "
                "placement='random'"
            )

    def observer(key: str, layer: LocalizedLinear) -> Observer:
        return lambda x, g: scores[key].observe(x, g, _weight_mn(layer))

    passes.run(layers, {key: observer(key, layer) for key, layer in layers.items()}, batches)
    sum_signals(scores)
    return scores


def _choose_blocks(
    scores: Mapping[str, TaylorScores], silent: set[str], layers: Layers, name: str, config: GLoraConfig
) -> dict[str, Partition]:
    def choose(key: str) -> Partition:
        local = local_shape(layers[key], name)
        if key in silent:
            return _at_random(key, layers[key], name, config)
        return plan_block(scores[key].rows, scores[key].cols, local.rows, local.cols)

    return decide_once(lambda: {key: choose(key) for key in layers})


def cocluster(
    key: str, layer: LocalizedLinear, name: str, config: CpsLoraConfig, left_ms: Tensor, right_sn: Tensor
) -> LayerReport:
    """The co-clusters of M = left_ms @ right_sn on one layer: its gradient, or an update."""
    started = time.perf_counter()
    result = _coclusters(layer, name, config, left_ms, right_sn)
    return LayerReport(
        key,
        result.partition,
        captured_energy=result.captured_energy,
        subspace_correlation=result.subspace_correlation,
        seconds=time.perf_counter() - started,
    )


def _coclusters(
    layer: LocalizedLinear,
    name: str,
    config: CpsLoraConfig,
    left_ms: Tensor,
    right_sn: Tensor,
    start: Partition | None = None,
) -> CoclusteringResult:
    local = local_shape(layer, name)
    return plan_coclusters(
        left_ms,
        right_sn,
        clusters=local.clusters,
        rank=local.rank,
        balance=config.balance,
        seed=config.seed,
        start=start,
    )


def sum_signals(signals: Mapping[str, TaylorScores | GradientSketch]) -> None:
    """Sum what the processes observed, in place.

    Raises:
        CalibrationError: no process saw any gradient, or one that is not finite.
        ZeroGradientError: the gradient is zero everywhere, so that any placement would be arbitrary.
    """
    seen = torch.tensor([signal.batches for signal in signals.values()])
    sum_over_processes([seen])
    if not seen.any():
        raise CalibrationError(f"no gradient reached any adapted layer in {IN_CALIBRATION}")
    for key, signal in signals.items():
        sum_over_processes(signal.tensors())
        if not all(bool(tensor.isfinite().all()) for tensor in signal.tensors()):
            raise CalibrationError(f"the gradient of {key} holds NaN or infinity; try bfloat16 instead of float16")
    if all(_is_zero(signal) for signal in signals.values()):
        raise ZeroGradientError(f"the gradient is zero on every adapted layer in {IN_CALIBRATION}; use other batches")


def _is_zero(signal: TaylorScores | GradientSketch) -> bool:
    return not any(bool(tensor.any()) for tensor in signal.tensors())


def _silent(signals: Mapping[str, TaylorScores | GradientSketch]) -> set[str]:
    """The layers that no gradient says anything of, which are placed at random; with a warning."""
    silent = [key for key, signal in signals.items() if _is_zero(signal)]
    if silent:
        warnings.warn(
            f"the gradient is zero in {len(silent)} of {len(signals)} adapted layers, {silent[0]} among them (an "
            "expert that no token was routed to?): they are placed at random. Use more or other batches, with labels",
            stacklevel=5,
        )
    return set(silent)


def _at_random(key: str, layer: LocalizedLinear, name: str, config: LocalizedConfig) -> Partition:
    seed = config.seed + zlib.crc32(key.encode())
    return random_partition(layer.out_features, layer.in_features, local_shape(layer, name), seed)


def _weight_mn(layer: LocalizedLinear) -> Tensor:
    weight = layer.get_base_weight()
    return weight.T if layer.is_conv1d else weight


PLANNERS = {
    "taylor": Planner(plan_blocks, _propose_blocks, block_passes, None),
    "coclustering": Planner(plan_clusters, _propose_clusters, int, cocluster),
}
