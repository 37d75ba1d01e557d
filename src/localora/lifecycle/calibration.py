"""Calibration: where an adapter acts is planned from the gradients of a few batches, or from another LoRA's update.

The gradient of a layer is the update it needs seen through the layers around it, which mix its rows and columns; what
training makes of many gradients is not. So clusters that no gradient shows can be found in the update of a plain LoRA
that was trained before on the same task, and is then of no further use.

Shape legend
    m, n   rows and columns of W      R   rank of that LoRA      s B (m, R), A (R, n)   its factors, dW = s B A
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from localora.adapter.config import LocalizedConfig
from localora.adapter.lora_file import lora_factors, read_lora_folder
from localora.adapter.saved_layers import PEFT_PREFIX
from localora.adapter.status import AdapterLayers, active_adapters, adapted_layers
from localora.arguments import check_callable, check_count, check_model, check_path
from localora.lifecycle.passes import CalibrationError, Layers, LossFn, Passes
from localora.lifecycle.planning import PLANNERS
from localora.lifecycle.processes import check_placement, decide_once
from localora.lifecycle.report import CalibrationReport, LayerReport
from localora.placement.threads import over_threads

Updates = dict[str, tuple[Tensor, Tensor]]  # name of a layer -> s B and A


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
        CalibrationReport: per layer what the placement captures; per run the mean loss of the batches and the
            seconds.

    Raises:
        ArgumentError: an argument of another kind, such as one batch for several.
        CalibrationError: no batches, a loss that is not finite, no label tokens, or an adapter that is placed already.
    """
    check_model("calibrate", model)
    if torch.is_inference_mode_enabled():
        raise CalibrationError("calibrate needs gradients, which inference_mode forbids; call it outside")
    check_count("calibrate", "steps", steps)
    check_callable("calibrate", "loss_fn", loss_fn, "(model, batch) -> loss")
    check_callable("calibrate", "progress", progress, "(done, total)")
    started = time.perf_counter()
    adapter = _to_place(find_adapter(model, adapter_name), anew=replace)
    passes = Passes(model, batches, steps, loss_fn)
    count = len(passes.batches)
    planner = PLANNERS[adapter.config.planner]
    if progress:
        total = count + planner.more_passes
        passes.progress = lambda done: progress(done, total)
    reports = planner.plan(passes, adapter, {}, None)
    loss = sum(passes.losses[:count]) / count
    return _placed(adapter, reports, count, loss, started)


def calibrate_from_update(
    model: nn.Module, lora: str | Path, *, adapter_name: str | None = None, replace: bool = False
) -> CalibrationReport:
    """Place a CPS-LoRA adapter (or the hybrid) by the co-clusters of another LoRA's update; no batch is looked at.

    Args:
        model: a PEFT model (or a model with injected adapters) whose adapter is to be placed.
        lora: folder of a plain LoRA that PEFT saved: trained on the task at hand, on the same base model, covering the
            adapted layers. Its rank should exceed r; twice K r showed the planted clusters in our experiments.
        adapter_name, replace: as in :func:`localora.calibrate`.

    Returns:
        CalibrationReport: per layer what the placement captures of that update; no batches and no loss.

    Raises:
        CalibrationError: G-LoRA, whose block is chosen by Taylor scores; layers that the LoRA lacks, or of another
            shape; an update that is zero everywhere; an adapter that is placed already.
        AdapterError: a folder that holds no plain LoRA, or a damaged one.
    """
    check_model("calibrate_from_update", model)
    check_path("calibrate_from_update", "lora", lora)
    started = time.perf_counter()
    adapter = find_adapter(model, adapter_name)
    planned = PLANNERS[adapter.config.planner].from_update
    if planned is None:
        raise CalibrationError(
            f"{adapter.name!r} is a {adapter.config.method} adapter, whose block is chosen by Taylor scores of a "
            "gradient; use localora.calibrate(model, batches)"
        )
    adapter = _to_place(adapter, anew=replace)

    def plan() -> dict[str, LayerReport]:
        updates = _updates_of(adapter.layers, Path(lora))
        each = over_threads(lambda key: planned(adapter, key, *updates.pop(key)), adapter.layers)
        return dict(zip(adapter.layers, each, strict=True))

    return _placed(adapter, decide_once(plan), 0, None, started)


def find_adapter(model: nn.Module, adapter_name: str | None) -> AdapterLayers:
    """The adapter meant: the one named, or the only active localora adapter.

    Raises:
        CalibrationError: there is none, or more than one and no name; or a wrapper that waits for gradients of
            parameters, which a pass that only observes does not make.
    """
    if isinstance(model, DistributedDataParallel) or type(model).__module__.startswith("deepspeed."):
        wrapper = type(model).__name__
        raise CalibrationError(f"give the model that {wrapper} wraps, model.module: {wrapper} cannot only observe")
    configs = getattr(model, "peft_config", {})
    if adapter_name is None:
        names = active_adapters(model)
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
    return AdapterLayers(adapter_name, config, dict(adapted_layers(model, adapter_name)))


def _to_place(adapter: AdapterLayers, *, anew: bool) -> AdapterLayers:
    """With the layers that wait for a placement, or all that can have one. CalibrationError if there are none."""
    name, layers = adapter.name, adapter.layers
    if any(name in layer.merged_adapters for layer in layers.values()):
        raise CalibrationError(
            f"the adapter {name!r} is merged into the base weights, which other labels would no longer undo; call "
            "unmerge_adapter() first"
        )
    layers = {key: layer for key, layer in layers.items() if adapter.budget(key).local}
    if not layers:
        raise CalibrationError(f"the adapter {name!r} has no local term on any layer, so there is nothing to place")
    if not anew:
        layers = {key: layer for key, layer in layers.items() if layer.is_unplaced(name)}
    if not layers:
        raise CalibrationError(f"the adapter {name!r} is placed already; pass replace=True to place it anew")
    return dataclasses.replace(adapter, layers=layers)


def _placed(
    adapter: AdapterLayers, reports: dict[str, LayerReport], batches: int, loss: float | None, started: float
) -> CalibrationReport:
    """Place each layer as planned, on every process alike."""
    for key, layer in adapter.layers.items():
        layer.place(adapter.name, reports[key].partition)
    check_placement(report.partition for report in reports.values())
    seconds = time.perf_counter() - started
    return CalibrationReport(adapter.config.method, tuple(reports.values()), batches, loss, seconds)


def _updates_of(layers: Layers, folder: Path) -> Updates:
    """The update that a saved LoRA has for each layer to place, by its name in the model."""
    factors, _ = lora_factors(*read_lora_folder(folder))
    absent = [key for key in layers if key.removeprefix(PEFT_PREFIX) not in factors]
    if absent:
        raise CalibrationError(
            f"the LoRA in {folder} has no update for {len(absent)} of {len(layers)} adapted layers, {absent[0]} "
            "among them; train it on the same target_modules, or place with localora.calibrate(model, batches)"
        )
    updates = {key: factors[key.removeprefix(PEFT_PREFIX)] for key in layers}
    for key, (B, A) in updates.items():
        m, n = layers[key].out_features, layers[key].in_features
        if (B.shape[0], A.shape[1]) != (m, n):
            raise CalibrationError(
                f"{key} is {m} x {n} and the update in {folder} is {B.shape[0]} x {A.shape[1]}; was that LoRA trained "
                "on another base model?"
            )
    silent = [key for key, (B, A) in updates.items() if not (B.any() and A.any())]
    if len(silent) == len(updates):
        raise CalibrationError("the update is zero in every layer: that LoRA has not been trained")
    if silent:
        warnings.warn(
            f"the update is zero in {len(silent)} of {len(updates)} layers, {silent[0]} among them; their placement is "
            "arbitrary",
            stacklevel=3,
        )
    return updates
