"""From batches to labels: observe the signal a method needs, sum it over processes, and ask the method's planner.

Shape legend
    x   (T, n) inputs of a layer      g   (T, m) gradient by its output      W   (m, n) its frozen weight
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from localora.placement.budget import LocalShape
from localora.placement.coclustering import plan_coclusters
from localora.placement.partition import Partition
from localora.placement.signals import GradientSketch, TaylorScores
from localora.placement.taylor import plan_block
from localora.tuner.config import CpsLoraConfig, GlobalLocalLoraConfig
from localora.tuner.distributed import decide_once, sum_over_processes
from localora.tuner.layer import LocalizedLinear
from localora.tuner.observe import Observer
from localora.tuner.passes import CalibrationError, Layers, Passes
from localora.tuner.report import LayerReport


def plan_blocks(passes: Passes, layers: Layers, name: str, config: GlobalLocalLoraConfig) -> dict[str, LayerReport]:
    """G-LoRA: Taylor scores, then the block of the highest; `config.refine` times more within the chosen block."""
    blocks: dict[str, Partition] = {}
    for _ in range(1 + config.refine):
        blocks = _choose_blocks(_taylor_scores(passes, layers, blocks, passes.batches), layers, name)
    # The share inside the final block is known only after it is chosen: one more pass, over the last batch.
    measured = _taylor_scores(passes, layers, blocks, passes.batches[-1:])
    return {key: LayerReport(key, blocks[key], importance_share=measured[key].inside_share) for key in layers}


def block_passes(config: GlobalLocalLoraConfig, batches: int) -> int:
    """How many backward passes :func:`plan_blocks` makes."""
    return (1 + config.refine) * batches + 1


def plan_clusters(passes: Passes, layers: Layers, name: str, config: CpsLoraConfig) -> dict[str, LayerReport]:
    """CPS-LoRA: a sketch of the summed gradient, then its co-clusters."""
    sketches = gradient_sketches(passes, layers, config)
    return decide_once(
        lambda: {key: _cocluster(key, layers[key], name, config, *sketches[key].factors()) for key in layers}
    )


def gradient_sketches(passes: Passes, layers: Layers, config: CpsLoraConfig) -> dict[str, GradientSketch]:
    """Sketches of each layer's gradient, summed over the batches and the processes."""
    sketches = {
        key: GradientSketch(layer.out_features, layer.in_features, config.sketch, config.seed)
        for key, layer in layers.items()
    }
    passes.run(layers, {key: sketch.observe for key, sketch in sketches.items()}, passes.batches)
    _sum_signals(sketches)
    return sketches


def local_shape(layer: LocalizedLinear, name: str) -> LocalShape:
    """The fixed shape of an adapter's local term on a layer that has one."""
    local = layer.localized_layout[name].budget.local
    assert local is not None  # layers without one have nothing to place and are left out before
    return local


def _taylor_scores(
    passes: Passes, layers: Layers, within: Mapping[str, Partition], batches: list[Any]
) -> dict[str, TaylorScores]:
    scores = {
        key: TaylorScores(layer.out_features, layer.in_features, within.get(key)) for key, layer in layers.items()
    }

    def observer(key: str, layer: LocalizedLinear) -> Observer:
        return lambda x, g: scores[key].observe(x, g, _weight_mn(layer))

    passes.run(layers, {key: observer(key, layer) for key, layer in layers.items()}, batches)
    _sum_signals(scores)
    return scores


def _choose_blocks(scores: Mapping[str, TaylorScores], layers: Layers, name: str) -> dict[str, Partition]:
    def choose(key: str) -> Partition:
        local = local_shape(layers[key], name)
        return plan_block(scores[key].rows, scores[key].cols, local.rows, local.cols)

    return decide_once(lambda: {key: choose(key) for key in layers})


def _cocluster(
    key: str, layer: LocalizedLinear, name: str, config: CpsLoraConfig, left_ms: Tensor, right_sn: Tensor
) -> LayerReport:
    started = time.perf_counter()
    local = local_shape(layer, name)
    result = plan_coclusters(
        left_ms, right_sn, clusters=local.clusters, rank=local.rank, balance=config.balance, seed=config.seed
    )
    return LayerReport(
        key,
        result.partition,
        captured_energy=result.captured_energy,
        subspace_correlation=result.subspace_correlation,
        seconds=time.perf_counter() - started,
    )


def _sum_signals(signals: Mapping[str, TaylorScores | GradientSketch]) -> None:
    silent = [key for key, signal in signals.items() if signal.batches == 0]
    if len(silent) == len(signals):
        raise CalibrationError(
            "no gradient reached any adapted layer: does the loss depend on the model's output, and does the loss_fn "
            "use the model it is given?"
        )
    if silent:
        warnings.warn(
            f"no gradient reached {len(silent)} of {len(signals)} adapted layers in calibration, {silent[0]} among "
            "them (an expert that no token was routed to?); their placement is arbitrary. Use more or other batches",
            stacklevel=3,
        )
    for signal in signals.values():
        sum_over_processes(signal.tensors())


def _weight_mn(layer: LocalizedLinear) -> Tensor:
    weight = layer.get_base_weight()
    return weight.T if layer.is_conv1d else weight
