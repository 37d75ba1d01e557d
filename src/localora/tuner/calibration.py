"""Calibration: a few ordinary batches show where the gradient lives, planners turn that into labels, layers take them.

Shape legend
    x   (T, n) inputs of a layer      g   (T, m) gradient by its output      W   (m, n) its frozen weight
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from localora.placement.budget import LocalShape
from localora.placement.partition import Partition
from localora.placement.signals import GradientSketch, TaylorScores
from localora.placement.taylor import plan_block
from localora.tuner.config import CpsLoraConfig, GlobalLocalLoraConfig, LocalizedConfig
from localora.tuner.distributed import check_agreement, decide_once, sum_over_processes
from localora.tuner.layer import LocalizedLinear
from localora.tuner.model import adapted_layers
from localora.tuner.observe import watch_gradients
from localora.tuner.report import CalibrationReport, LayerReport

LossFn = Callable[[nn.Module, Any], Tensor]
Layers = dict[str, LocalizedLinear]


class CalibrationError(RuntimeError):
    """Calibration cannot tell where the adapter should act; the message says why and what to do."""


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    steps: int = 8,
    loss_fn: LossFn | None = None,
    *,
    adapter_name: str | None = None,
    replace: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationReport:
    """Place an adapter from the gradients of a few batches; do this after `get_peft_model` and before training.

    G-LoRA takes the rows and columns with the highest first-order Taylor importance |W * dL/dW|; CPS-LoRA co-clusters a
    sketch of the summed gradient. No parameter changes and no `.grad` is touched; the model keeps its mode. In a
    distributed run every process calls this with its own batches; the signals are summed.

    Args:
        model: a PEFT model (or a model with injected adapters).
        batches: dicts given to the model as keyword arguments, or anything `loss_fn` understands. Tensors are moved to
            the model's device. At most `steps` of them are read, and kept if a second pass is needed.
        steps: batches to observe. One batch costs about one training step.
        loss_fn: (model, batch) -> scalar loss; default `model(**batch).loss`, or the first output.
        adapter_name: the adapter to place; default the active one.
        replace: place again an adapter that already has a placement. Its trained factors then mean something else, so
            this is for adapters that have not been trained.
        progress: called with (passes done, passes in all) after each forward and backward pass.

    Returns:
        CalibrationReport: per layer what the placement captures; per run the loss and the seconds.

    Raises:
        CalibrationError: no batches, a loss that is not finite, no label tokens, or an adapter that is placed already.
    """
    started = time.perf_counter()
    name, config = _adapter_config(model, adapter_name)
    layers = _layers_to_place(model, name, replace)
    kept = [_to_device(batch, model) for batch in islice(batches, steps)]
    if not kept:
        raise CalibrationError("calibration got no batches: the data set is empty, or its iterator is used up")

    refine = config.refine if isinstance(config, GlobalLocalLoraConfig) else 0
    extra = refine * len(kept) + 1 if isinstance(config, GlobalLocalLoraConfig) else 0
    passes = _Passes(model, layers, kept, loss_fn, progress, extra)
    if isinstance(config, GlobalLocalLoraConfig):
        reports = _place_blocks(passes, layers, name, refine)
    else:
        assert isinstance(config, CpsLoraConfig)
        reports = _place_clusters(passes, layers, name, config)
    for layer_name, layer in layers.items():
        layer.place(name, reports[layer_name].partition)
    check_agreement(_digest(reports.values()))
    return CalibrationReport(
        method=config.method,
        layers=tuple(reports.values()),
        batches=len(kept),
        loss=sum(passes.losses[: len(kept)]) / len(kept),
        seconds=time.perf_counter() - started,
    )


def _place_blocks(passes: _Passes, layers: Layers, name: str, refine: int) -> dict[str, LayerReport]:
    blocks: dict[str, Partition] = {}
    for _ in range(1 + refine):
        scores = _taylor_pass(passes, layers, blocks, passes.batches)
        blocks = decide_once(lambda: _plan_blocks(scores, layers, name))  # noqa: B023 (called at once)
    # The share inside the final block is known only after it is chosen: one more pass, over the last batch.
    measured = _taylor_pass(passes, layers, blocks, passes.batches[-1:])
    return {key: LayerReport(key, blocks[key], importance_share=measured[key].inside_share) for key in layers}


def _plan_blocks(scores: Mapping[str, TaylorScores], layers: Layers, name: str) -> dict[str, Partition]:
    return {
        key: plan_block(scores[key].rows, scores[key].cols, local.rows, local.cols)
        for key, layer in layers.items()
        for local in [_local(layer, name)]
    }


def _taylor_pass(
    passes: _Passes, layers: Layers, within: Mapping[str, Partition], batches: list[Any]
) -> dict[str, TaylorScores]:
    scores = {
        key: TaylorScores(layer.out_features, layer.in_features, within.get(key)) for key, layer in layers.items()
    }

    def observer(key: str, layer: LocalizedLinear) -> Callable[[Tensor, Tensor], None]:
        return lambda x, g: scores[key].observe(x, g, _weight_mn(layer))

    passes.run({key: observer(key, layer) for key, layer in layers.items()}, batches)
    _sum_signals(scores)
    return scores


def _place_clusters(passes: _Passes, layers: Layers, name: str, config: CpsLoraConfig) -> dict[str, LayerReport]:
    sketches = {
        key: GradientSketch(layer.out_features, layer.in_features, config.sketch, config.seed)
        for key, layer in layers.items()
    }
    passes.run({key: sketch.observe for key, sketch in sketches.items()}, passes.batches)
    _sum_signals(sketches)

    def plan(key: str, layer: LocalizedLinear) -> LayerReport:
        from localora.placement.coclustering import plan_coclusters

        started = time.perf_counter()
        local = _local(layer, name)
        result = plan_coclusters(
            *sketches[key].factors(),
            clusters=local.clusters,
            rank=local.rank,
            balance=config.balance,
            seed=config.seed,
        )
        return LayerReport(
            key,
            result.partition,
            captured_energy=result.captured_energy,
            subspace_correlation=result.subspace_correlation,
            seconds=time.perf_counter() - started,
        )

    return decide_once(lambda: {key: plan(key, layer) for key, layer in layers.items()})


class _Passes:
    """Forward and backward passes over the kept batches, with observers on the layers' frozen weights."""

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        batches: list[Any],
        loss_fn: LossFn | None,
        progress: Callable[[int, int], None] | None,
        extra: int,
    ) -> None:
        self.model, self.layers, self.batches = model, layers, batches
        self.loss_fn = loss_fn or _default_loss
        self.progress = progress
        self.total = len(batches) + extra
        self.losses: list[float] = []

    def run(self, observers: Mapping[str, Callable[[Tensor, Tensor], None]], batches: list[Any]) -> None:
        by_module = {self.layers[key].get_base_layer(): observer for key, observer in observers.items()}
        for layer in self.layers.values():
            layer.calibrating = True
        try:
            with watch_gradients(self.model, by_module), torch.enable_grad():
                for batch in batches:
                    self._one(batch)
        finally:
            for layer in self.layers.values():
                layer.calibrating = False

    def _one(self, batch: Any) -> None:
        number = len(self.losses) % len(self.batches) + 1
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if isinstance(labels, Tensor) and labels.numel() and bool((labels == -100).all()):
            raise CalibrationError(
                f"calibration batch {number} has no label tokens: every label is -100. Raise the maximum length, or "
                "drop examples whose completion is cut off"
            )
        loss = self.loss_fn(self.model, batch)
        if not torch.isfinite(loss).all():
            raise CalibrationError(
                f"the loss of calibration batch {number} is {loss.item()}; check the batch for empty labels and the "
                "model for overflow (try bfloat16 or float32 instead of float16)"
            )
        loss.backward()
        self.losses.append(float(loss.detach()))
        if self.progress:
            self.progress(len(self.losses), self.total)


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


def _adapter_config(model: nn.Module, adapter_name: str | None) -> tuple[str, LocalizedConfig]:
    configs = getattr(model, "peft_config", {})
    if adapter_name is None:
        active = getattr(model, "active_adapters", None)
        names = list(active() if callable(active) else active or configs)
        names = [name for name in names if isinstance(configs.get(name), LocalizedConfig)]
        if len(names) != 1:
            raise CalibrationError(
                f"calibrate needs one active localora adapter, found {names or 'none'}; name it with adapter_name="
            )
        adapter_name = names[0]
    config = configs.get(adapter_name)
    if not isinstance(config, LocalizedConfig):
        raise CalibrationError(
            f"{adapter_name!r} is no localora adapter of this model; its adapters are {sorted(configs) or 'none'}"
        )
    return adapter_name, config


def _layers_to_place(model: nn.Module, name: str, replace: bool) -> Layers:
    with_local = {key: layer for key, layer in adapted_layers(model, name) if layer.localized_layout[name].budget.local}
    if not with_local:
        raise CalibrationError(f"the adapter {name!r} has no local term on any layer, so there is nothing to place")
    if replace:
        return with_local
    unplaced = {key: layer for key, layer in with_local.items() if layer.is_unplaced(name)}
    if not unplaced:
        raise CalibrationError(f"the adapter {name!r} is placed already; pass replace=True to place it anew")
    return unplaced


def _local(layer: LocalizedLinear, name: str) -> LocalShape:
    local = layer.localized_layout[name].budget.local
    assert local is not None  # _layers_to_place left the others out
    return local


def _weight_mn(layer: LocalizedLinear) -> Tensor:
    weight = layer.get_base_weight()
    return weight.T if layer.is_conv1d else weight


def _default_loss(model: nn.Module, batch: Any) -> Tensor:
    output = model(**batch)
    loss = output.get("loss") if isinstance(output, Mapping) else output[0]
    if not isinstance(loss, Tensor) or loss.ndim:
        raise CalibrationError(
            "the model returned no scalar loss for a calibration batch; give it labels, or pass a loss_fn of "
            "(model, batch)"
        )
    return loss


def _to_device(batch: Any, model: nn.Module) -> Any:
    if not isinstance(batch, Mapping):
        return batch
    device = next(model.parameters()).device
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _digest(reports: Iterable[LayerReport]) -> str:
    sha = hashlib.sha256()
    for report in reports:
        sha.update(report.name.encode())
        sha.update(report.partition.row_bytes + report.partition.col_bytes)
    return sha.hexdigest()
