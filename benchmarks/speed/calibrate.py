"""Calibration beside a training step of PEFT's LoRA on the same batch: time a batch, and peak memory."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import isolated
from benchmarks.speed.methods import BY_KEY, PEFT_LORA, PLACED
from benchmarks.speed.store import Cells, Row
from benchmarks.speed.timing import interleave
from benchmarks.speed.workloads import DTYPES, Settings, TrainingStep, Workload, llama_block, smollm2
from torch import Tensor, nn

from localora import calibrate

WORKLOADS = (smollm2(4, 128), smollm2(4, 512), llama_block())
FEW, MANY = 1, 3  # batches; their difference is what a batch costs, the rest is planning


def cells(settings: Settings) -> Cells:
    """Every workload and precision: seconds, and peaks each in a fresh process."""
    made: Cells = {}
    for workload in WORKLOADS[:1] if settings.tiny else WORKLOADS:
        for precision in DTYPES:
            sized = workload.sized(settings)
            made[f"time, {workload.title}, {precision}"] = partial(_time, sized, precision, settings)
            made[f"memory, {workload.title}, {precision}"] = partial(_memory, sized, precision, settings)
    return made


def run(model: nn.Module, batch: dict[str, Tensor], batches: int) -> None:
    calibrate(model, [batch] * batches, steps=batches, replace=True)


def _time(workload: Workload, precision: str, settings: Settings) -> list[Row]:
    base, batch = workload.base(DTYPES[precision], settings), workload.token_batch(settings)
    step = TrainingStep(PEFT_LORA, PEFT_LORA.wrap(base, settings.r).train(), batch, settings.device)
    calls: dict[str, Any] = {PEFT_LORA.key: step}
    for key in PLACED:
        model = BY_KEY[key].wrap(base, settings.r, placement="calibrate").train()
        for batches in (FEW, MANY):
            calls[f"{key} {batches}"] = partial(run, model, batch, batches)
    seconds = interleave(calls, settings.rounds, settings.device, warmups=1)
    rows: list[Row] = [{"method": PEFT_LORA.key, "step_seconds": seconds[PEFT_LORA.key]}]
    for key in PLACED:
        few, many = seconds[f"{key} {FEW}"], seconds[f"{key} {MANY}"]
        batch_seconds = [(b - a) / (MANY - FEW) for a, b in zip(few, many, strict=True)]
        rest = [a - FEW * one for a, one in zip(few, batch_seconds, strict=True)]
        rows.append({"method": key, "batch_seconds": batch_seconds, "planning_seconds": rest})
    return rows


def _memory(workload: Workload, precision: str, settings: Settings) -> list[Row]:
    keys = (PEFT_LORA.key, *PLACED)
    peaks: dict[str, list[dict[str, Any]]] = {key: [] for key in keys}
    for _ in range(1 if settings.tiny else 3):
        for key in keys:
            peaks[key].append(
                isolated.call(
                    "benchmarks.speed.calibrate:peak",
                    workload=asdict(workload),
                    precision=precision,
                    method=key,
                    r=settings.r,
                    device=str(settings.device),
                )
            )
    return [{"method": key, "peaks": runs} for key, runs in peaks.items()]


def peak(workload: dict[str, Any], precision: str, method: str, r: int, device: str) -> dict[str, Any]:
    """Runs in its own process: training steps of PEFT's LoRA, or a calibration of as many batches."""
    settings = Settings(Path(tempfile.gettempdir()), torch.device(device), random=True)
    made = Workload(**workload)
    base, batch = made.base(DTYPES[precision], settings), made.token_batch(settings)
    chosen = BY_KEY[method]
    model = chosen.wrap(base, r, placement="calibrate").train()
    if method == PEFT_LORA.key:
        step = TrainingStep(chosen, model, batch, settings.device)
        memory = isolated.PeakMemory(settings.device)
        for _ in range(MANY):
            step()
    else:
        memory = isolated.PeakMemory(settings.device)
        run(model, batch, MANY)
    return memory.result()
