"""From batches to labels: observe the signal a method needs, sum it over processes, and ask the method's planner.

Shape legend
    x   (T, n) inputs of a layer      g   (T, m) gradient by its output      W   (m, n) its frozen weight
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from localora.adapter.config import CpsLoraConfig
from localora.adapter.layer import LocalizedLinear
from localora.adapter.status import AdapterLayers, seed_of
from localora.lifecycle.observe import Observer
from localora.lifecycle.passes import CalibrationError, Passes, ZeroGradientError
from localora.lifecycle.processes import decide_once, sum_over_processes
from localora.lifecycle.report import LayerReport
from localora.placement.captured import captured_energy
from localora.placement.coclustering import plan_coclusters
from localora.placement.partition import Partition
from localora.placement.random import random_partition
from localora.placement.sketch import GradientSketch
from localora.placement.taylor import TaylorScores, plan_block
from localora.placement.threads import over_threads

Partitions = Mapping[str, Partition]  # by name of the layer
IN_CALIBRATION = "calibration: does the loss depend on the model's output, and does the loss_fn use the model given?"


@dataclass(frozen=True)
class Planner:
    """How a method places.

    Attributes:
        plan: from batches, and at an event from the partitions in use, so that the reports say what those held.
            Partitions that are given to take their place are not planned: one batch shows what they hold.
        more_passes: how many backward passes `plan` makes beyond one for each batch.
        from_update: from another LoRA's update, if the method can.
    """

    plan: Callable[[Passes, AdapterLayers, Partitions, Partitions | None], dict[str, LayerReport]]
    more_passes: int
    from_update: Callable[[AdapterLayers, str, Tensor, Tensor], LayerReport] | None


def plan_blocks(
    passes: Passes, adapter: AdapterLayers, old: Partitions, given: Partitions | None
) -> dict[str, LayerReport]:
    """G-LoRA: Taylor scores, then the block of the highest."""
    before = _shares(passes, adapter, old) if old else {}
    silent: set[str] = set()
    if given is None:
        scores = _taylor_scores(passes, adapter, {}, passes.batches)
        silent = _silent(scores)

        def choose(key: str) -> Partition:
            if key in silent:
                return old.get(key) or _at_random(adapter, key)
            local = adapter.local_shape(key)
            return plan_block(scores[key].rows, scores[key].cols, local.rows, local.cols)

        given = decide_once(lambda: {key: choose(key) for key in adapter.layers})
    inside = _shares(passes, adapter, given)  # known only after the block is chosen: one more pass
    return {
        key: LayerReport(
            key, block, importance_share=inside[key], held_before=before.get(key), at_random=key in silent - old.keys()
        )
        for key, block in given.items()
    }


def plan_clusters(
    passes: Passes, adapter: AdapterLayers, old: Partitions, given: Partitions | None
) -> dict[str, LayerReport]:
    """CPS-LoRA: a sketch of the summed gradient, then its co-clusters."""
    sketches = gradient_sketches(passes, adapter, passes.batches if given is None else passes.batches[:1])
    silent = _silent(sketches) if given is None else set()

    def plan_one(key: str) -> LayerReport:
        if key in silent:
            partition = old.get(key) or _at_random(adapter, key)
            held_before = 0.0 if key in old else None
            return LayerReport(key, partition, captured_energy=0.0, held_before=held_before, at_random=key not in old)
        left, right = sketches.pop(key).factors()  # popped: the memory of a sketch is free once it is planned on
        if given is None:
            return cocluster(adapter, key, left, right, old.get(key))
        rank = adapter.local_shape(key).rank
        before, after = (captured_energy(left, right, partition, rank) for partition in (old[key], given[key]))
        return LayerReport(key, given[key], captured_energy=after, held_before=before)

    return decide_once(lambda: dict(zip(adapter.layers, over_threads(plan_one, adapter.layers), strict=True)))


def gradient_sketches(passes: Passes, adapter: AdapterLayers, batches: list[Any]) -> dict[str, GradientSketch]:
    """Sketches of each layer's gradient, summed over the batches and the processes."""
    config = adapter.config
    assert isinstance(config, CpsLoraConfig)
    sketches = {
        key: GradientSketch(layer.out_features, layer.in_features, config.sketch, config.seed)
        for key, layer in adapter.layers.items()
    }
    passes.run({adapter.layers[key]: sketch.observe for key, sketch in sketches.items()}, batches)
    sum_signals(sketches)
    return sketches


def cocluster(
    adapter: AdapterLayers, key: str, left_ms: Tensor, right_sn: Tensor, start: Partition | None = None
) -> LayerReport:
    """The co-clusters of M = left_ms @ right_sn on one layer: its gradient, or an update."""
    started, local, config = time.perf_counter(), adapter.local_shape(key), adapter.config
    assert isinstance(config, CpsLoraConfig)
    result = plan_coclusters(
        left_ms,
        right_sn,
        clusters=local.clusters,
        rank=local.rank,
        balance=config.balance,
        seed=config.seed,
        start=start,
    )
    return LayerReport(
        key,
        result.partition,
        captured_energy=result.captured_energy,
        subspace_correlation=result.subspace_correlation,
        held_before=result.start_energy,
        seconds=time.perf_counter() - started,
    )


def _shares(passes: Passes, adapter: AdapterLayers, blocks: Partitions) -> dict[str, float]:
    """What each layer's block holds of the importance on the last batch."""
    return {key: s.inside_share for key, s in _taylor_scores(passes, adapter, blocks, passes.batches[-1:]).items()}


def _taylor_scores(
    passes: Passes, adapter: AdapterLayers, within: Partitions, batches: list[Any]
) -> dict[str, TaylorScores]:
    scores, observers = {}, {}
    for key, layer in adapter.layers.items():
        backend = layer.quantization_backend
        if backend is not None and not backend.supports_merge:
            raise CalibrationError(
                f"G-LoRA's importance is |weight * gradient|, and {key} is a {backend.backend_name} layer, which does "
                "not give its weight back. Use CPS-LoRA, which needs the gradient alone, or placement='random'"
            )
        scores[key] = TaylorScores(layer.out_features, layer.in_features, within.get(key))
        observers[layer] = _with_weight(scores[key], layer)
    passes.run(observers, batches)
    sum_signals(scores)
    return scores


def _with_weight(scores: TaylorScores, layer: LocalizedLinear) -> Observer:
    def observe(x: Tensor, g: Tensor) -> None:
        weight = layer.get_base_weight()
        scores.observe(x, g, weight.T if layer.is_conv1d else weight)

    return observe


def sum_signals(signals: Mapping[str, TaylorScores | GradientSketch]) -> None:
    """Sum what the processes observed, in place.

    Raises CalibrationError if none saw a gradient, or one that is not finite; ZeroGradientError if all of it is zero.
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
    """The layers that no gradient says anything of: they keep their placement, or get a random one; with a warning."""
    silent = [key for key, signal in signals.items() if _is_zero(signal)]
    if silent:
        warnings.warn(
            f"the gradient is zero in {len(silent)} of {len(signals)} adapted layers, {silent[0]} among them (an "
            "expert that no token was routed to?): they keep the placement they have, or get a "
            "random one. Use more or other batches, with labels",
            stacklevel=5,
        )
    return set(silent)


def _at_random(adapter: AdapterLayers, key: str) -> Partition:
    layer, seed = adapter.layers[key], adapter.config.seed + seed_of(key=key)
    return random_partition(layer.out_features, layer.in_features, adapter.local_shape(key), seed)


PLANNERS = {"taylor": Planner(plan_blocks, 1, None), "coclustering": Planner(plan_clusters, 0, cocluster)}
