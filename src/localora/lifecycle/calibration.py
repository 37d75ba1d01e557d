"""Calibration: a few ordinary batches show where the gradient lives, and a planner turns that into labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from localora.adapter.adapted import active_adapters, adapted_layers
from localora.adapter.config import LocalizedConfig
from localora.arguments import check_callable, check_count, check_model
from localora.lifecycle.passes import CalibrationError, Layers, LossFn, Passes
from localora.lifecycle.planning import PLANNERS
from localora.lifecycle.processes import check_placement
from localora.lifecycle.report import CalibrationReport


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
    name, config = adapter_config(model, adapter_name)
    layers = layers_to_place(model, name, replace)
    passes = Passes(model, batches, steps, loss_fn)
    count = len(passes.batches)
    planner = PLANNERS[config.planner]
    if progress:
        total = count + planner.more_passes
        passes.progress = lambda done: progress(done, total)
    reports = planner.plan(passes, layers, name, config, {})
    for layer_name, layer in layers.items():
        layer.place(name, reports[layer_name].partition)
    check_placement(report.partition for report in reports.values())
    return CalibrationReport(
        method=config.method,
        layers=tuple(reports.values()),
        batches=count,
        loss=sum(passes.losses[:count]) / count,
        seconds=time.perf_counter() - started,
    )


def adapter_config(model: nn.Module, adapter_name: str | None) -> tuple[str, LocalizedConfig]:
    """The name and config of the adapter meant: the one named, or the only active localora adapter.

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
    return adapter_name, config


def layers_to_place(model: nn.Module, name: str, replace: bool) -> Layers:
    """The layers that wait for a placement; with `replace`, all that can have one.

    Raises:
        CalibrationError: there are none, or the adapter is merged.
    """
    merged = [key for key, layer in adapted_layers(model, name) if name in layer.merged_adapters]
    if merged:
        raise CalibrationError(
            f"the adapter {name!r} is merged into the base weights, which other labels would no longer undo; call "
            "unmerge_adapter() first"
        )
    with_local = {key: layer for key, layer in adapted_layers(model, name) if layer.localized_layout[name].budget.local}
    if not with_local:
        raise CalibrationError(f"the adapter {name!r} has no local term on any layer, so there is nothing to place")
    if replace:
        return with_local
    unplaced = {key: layer for key, layer in with_local.items() if layer.is_unplaced(name)}
    if not unplaced:
        raise CalibrationError(f"the adapter {name!r} is placed already; pass replace=True to place it anew")
    return unplaced
