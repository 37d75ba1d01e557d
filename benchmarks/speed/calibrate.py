"""Calibration beside a training step of PEFT's LoRA on the same batch: time a batch, and peak memory."""

from __future__ import annotations

import tempfile
import time
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
from localora.lab.training.memory import PeakMemory

WORKLOADS = (smollm2(4, 128), llama_block())
BATCHES = 3
MOST_ROUNDS = 5  # a calibration takes many times as long as a step


def cells(settings: Settings) -> Cells:
    """Every workload and precision: seconds, and peaks each in a fresh process."""
    made: Cells = {}
    for workload in WORKLOADS[:1] if settings.tiny else WORKLOADS:
        for precision in DTYPES:
            sized = workload.sized(settings)
            made[f"time, {workload.title}, {precision}"] = partial(_time, sized, precision, settings)
            made[f"memory, {workload.title}, {precision}"] = partial(_memory, sized, precision, settings)
    return made


class Calibration:
    """One calibration with a clock on its passes; `taken` holds (seconds of a batch, seconds of all the rest)."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self.model, self.batch = model, batch
        self.taken: list[tuple[float, float]] = []

    def __call__(self) -> None:
        ends: list[float] = []
        started = time.perf_counter()
        calibrate(
            self.model,
            [self.batch] * BATCHES,
            steps=BATCHES,
            replace=True,
            progress=lambda done, total: ends.append(time.perf_counter()),
        )
        everything = time.perf_counter() - started
        one = (ends[BATCHES - 1] - ends[0]) / (BATCHES - 1)  # the first pass warms caches up
        self.taken.append((one, everything - BATCHES * one))


def _time(workload: Workload, precision: str, settings: Settings) -> list[Row]:
    base, batch = workload.base(DTYPES[precision], settings), workload.token_batch(settings)
    step = TrainingStep(PEFT_LORA, PEFT_LORA.wrap(base, settings.r).train(), batch, settings.device)
    rounds = min(settings.rounds, MOST_ROUNDS)
    calibrations = {
        key: Calibration(BY_KEY[key].wrap(base, settings.r, placement="calibrate").train(), batch) for key in PLACED
    }
    seconds = interleave({PEFT_LORA.key: step, **calibrations}, rounds, settings.device, warmups=1)
    rows: list[Row] = [{"method": PEFT_LORA.key, "step_seconds": seconds[PEFT_LORA.key]}]
    for key, calibration in calibrations.items():
        one, rest = zip(*calibration.taken[-rounds:], strict=True)
        rows.append({"method": key, "batch_seconds": one, "planning_seconds": rest})
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
        with PeakMemory() as memory:
            for _ in range(BATCHES):
                step()
    else:
        with PeakMemory() as memory:
            Calibration(model, batch)()
    return isolated.peaks(memory, settings.device)
