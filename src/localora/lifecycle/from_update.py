"""Clusters from an update that training has made already, instead of from a gradient.

The gradient of a layer is the update it needs seen through the layers around it, which mix its rows and columns; what
training makes of many gradients is not. So clusters that no gradient shows can be found in the update of a plain LoRA
that was trained before on the same task, and is then of no further use.

Shape legend
    m, n   rows and columns of W      R   rank of that LoRA      s B (m, R), A (R, n)   its factors, dW = s B A
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from torch import Tensor, nn

from localora.adapter.lora_file import lora_factors, read_lora_folder
from localora.adapter.saved_layers import PEFT_PREFIX
from localora.arguments import check_model, check_path
from localora.lifecycle.calibration import adapter_config, layers_to_place
from localora.lifecycle.passes import CalibrationError
from localora.lifecycle.planning import PLANNERS
from localora.lifecycle.processes import check_placement, decide_once
from localora.lifecycle.report import CalibrationReport, LayerReport
from localora.placement.threads import over_threads


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
    name, config = adapter_config(model, adapter_name)
    planned = PLANNERS[config.planner].from_update
    if planned is None:
        raise CalibrationError(
            f"{name!r} is a {config.method} adapter, whose block is chosen by Taylor scores of a gradient; "
            "use localora.calibrate(model, batches)"
        )
    layers = layers_to_place(model, name, replace)

    def plan() -> dict[str, LayerReport]:
        factors, _ = lora_factors(*read_lora_folder(Path(lora)))
        shapes = {key: (layer.out_features, layer.in_features) for key, layer in layers.items()}
        updates = _matched(factors, shapes, Path(lora))
        _check_not_zero(updates)
        return dict(
            zip(
                layers,
                over_threads(lambda key: planned(key, layers[key], name, config, *updates.pop(key)), layers),
                strict=True,
            )
        )

    reports = decide_once(plan)
    for key, layer in layers.items():
        layer.place(name, reports[key].partition)
    check_placement(report.partition for report in reports.values())
    return CalibrationReport(config.method, tuple(reports.values()), 0, None, time.perf_counter() - started)


def _matched(
    factors: dict[str, tuple[Tensor, Tensor]], shapes: dict[str, tuple[int, int]], folder: Path
) -> dict[str, tuple[Tensor, Tensor]]:
    """s B and A of each layer to place, by its name in the model."""
    found = {}
    for key, (m, n) in shapes.items():
        pair = factors.get(key.removeprefix(PEFT_PREFIX))
        if pair is None:
            absent = [other for other in shapes if other.removeprefix(PEFT_PREFIX) not in factors]
            raise CalibrationError(
                f"the LoRA in {folder} has no update for {len(absent)} of {len(shapes)} adapted layers, {absent[0]} "
                "among them; train it on the same target_modules, or place with localora.calibrate(model, batches)"
            )
        B, A = pair
        if (B.shape[0], A.shape[1]) != (m, n):
            raise CalibrationError(
                f"{key} is {m} x {n} and the update in {folder} is {B.shape[0]} x {A.shape[1]}; was that LoRA trained "
                "on another base model?"
            )
        found[key] = pair
    return found


def _check_not_zero(updates: dict[str, tuple[Tensor, Tensor]]) -> None:
    silent = [key for key, (B, A) in updates.items() if not (B.any() and A.any())]
    if len(silent) == len(updates):
        raise CalibrationError("the update is zero in every layer: that LoRA has not been trained")
    if silent:
        warnings.warn(
            f"the update is zero in {len(silent)} of {len(updates)} layers, {silent[0]} among them; their placement is "
            "arbitrary",
            stacklevel=3,
        )
