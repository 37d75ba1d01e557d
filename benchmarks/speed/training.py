"""Training steps: time of all methods side by side, bytes saved for backward, peak memory, and torch.compile."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import isolated
from benchmarks.speed.counters import SavedBytes
from benchmarks.speed.methods import BY_KEY, Method, for_dtype
from benchmarks.speed.store import Cells, Row
from benchmarks.speed.timing import interleave
from benchmarks.speed.workloads import DTYPES, Settings, TrainingStep, Workload, llama_block, smollm2, smollm2_blocks

from localora.lab.training.memory import PeakMemory

BLOCKS = smollm2_blocks(4, 128)
WORKLOADS = (smollm2(4, 128), smollm2(4, 512), BLOCKS, smollm2_blocks(4, 512), llama_block())
DROPOUTS = (0.0, 0.1)
MEMORY_STEPS = 3
WEIGHED = ("floor", "peft-lora", "peft-dora", "lora", "g-lora", "cps-lora-4", "hybrid")  # each costs three processes
COMPILED = ("floor", "peft-lora", "peft-dora", "peft-gralora", "lora", "g-lora", "cps-lora-4", "hybrid")


def time_cells(settings: Settings) -> Cells:
    """Every workload and precision: seconds of a training step of each method, and of its phases."""
    return {
        f"{workload.title}, {precision}": lambda workload=workload, dtype=dtype: _time(
            workload.sized(settings), dtype, settings
        )
        for workload in WORKLOADS
        for precision, dtype in DTYPES.items()
    }


def steps(
    workload: Workload, dtype: torch.dtype, settings: Settings, methods: list[Method], r: int, dropout: float = 0.0
) -> dict[str, TrainingStep]:
    """One step object a method, all over the same frozen weights and the same batch."""
    base, batch = workload.base(dtype, settings), workload.token_batch(settings)
    made = {}
    for method in methods:
        torch.manual_seed(0)
        made[method.key] = TrainingStep(method, method.wrap(base, r, dropout).train(), batch, settings.device)
    return made


def _time(workload: Workload, dtype: torch.dtype, settings: Settings) -> list[Row]:
    calls = steps(workload, dtype, settings, for_dtype(dtype), settings.r)
    phases: dict[str, list[dict[str, float]]] = {key: [] for key in calls}
    timed = {key: lambda key=key, call=call: phases[key].append(call()) for key, call in calls.items()}
    seconds = interleave(timed, settings.rounds, settings.device)
    return [
        {
            "method": key,
            "trainable": calls[key].trainable,
            "seconds": seconds[key],
            "phases": phases[key][-settings.rounds :],
        }
        for key in calls
    ]


def saved_cells(settings: Settings) -> Cells:
    """Every workload, precision and dropout: bytes kept for the backward pass of one step."""
    return {
        f"{workload.title}, {precision}, dropout {dropout}": lambda workload=workload, dtype=dtype, dropout=dropout: (
            _saved(workload.sized(settings), dtype, dropout, settings)
        )
        for workload in (WORKLOADS[0], WORKLOADS[-1])
        for precision, dtype in DTYPES.items()
        for dropout in DROPOUTS
    }


def _saved(workload: Workload, dtype: torch.dtype, dropout: float, settings: Settings) -> list[Row]:
    rows = []
    for key, step in steps(workload, dtype, settings, for_dtype(dtype), settings.r, dropout).items():
        rows.append({"method": key, "saved_bytes": saved_bytes(step)})
        gc.collect()
    return rows


def saved_bytes(step: TrainingStep) -> int:
    """Of one forward pass with its loss; whatever is cached at a first step is there before."""
    step()
    return SavedBytes([*step.model.parameters(), *step.model.buffers()]).record(step.loss)


def memory_cells(settings: Settings) -> Cells:
    """Two workloads, every precision: peak memory of the steps of WEIGHED methods, in fresh processes, three times."""
    return {
        f"{workload.title}, {precision}": lambda workload=workload, precision=precision: _memory(
            workload.sized(settings), precision, settings
        )
        for workload in (WORKLOADS[:1] if settings.tiny else (WORKLOADS[0], WORKLOADS[-1]))
        for precision in DTYPES
    }


def _memory(workload: Workload, precision: str, settings: Settings) -> list[Row]:
    methods = [BY_KEY[key] for key in WEIGHED[: 2 if settings.tiny else None]]
    peaks: dict[str, list[dict[str, Any]]] = {method.key: [] for method in methods}
    for _ in range(1 if settings.tiny else 3):
        for method in methods:
            peaks[method.key].append(
                isolated.call(
                    "benchmarks.speed.training:peak_of_steps",
                    workload=asdict(workload),
                    precision=precision,
                    method=method.key,
                    r=settings.r,
                    device=str(settings.device),
                )
            )
    return [{"method": key, "peaks": runs} for key, runs in peaks.items()]


def peak_of_steps(workload: dict[str, Any], precision: str, method: str, r: int, device: str) -> dict[str, Any]:
    """Runs in its own process. Weights are random, as their values do not change what memory is used."""
    settings = Settings(Path(tempfile.gettempdir()), torch.device(device), random=True)
    model = Workload(**workload)
    step = steps(model, DTYPES[precision], settings, [BY_KEY[method]], r)[method]
    with PeakMemory() as memory:
        for _ in range(MEMORY_STEPS):
            step()
    return isolated.peaks(memory, settings.device)


def compile_cells(settings: Settings) -> Cells:
    """Layers of SmolLM2's shape and the Llama block, compiled: seconds of a step, and how often the graph broke."""
    return {
        f"{workload.title}, {precision}, compiled": lambda workload=workload, dtype=dtype: _compiled(
            workload.sized(settings), dtype, settings
        )
        for workload in (BLOCKS, WORKLOADS[-1])
        for precision, dtype in DTYPES.items()
    }


def _compiled(workload: Workload, dtype: torch.dtype, settings: Settings) -> list[Row]:
    from torch._dynamo.utils import counters

    calls, breaks = {}, {}
    for key in COMPILED:
        torch._dynamo.reset()
        counters.clear()
        (step,) = steps(workload, dtype, settings, [BY_KEY[key]], settings.r).values()
        step.model = torch.compile(step.model)
        for _ in range(3):
            step()
        breaks[key] = sum(counters["graph_break"].values())
        calls[key] = step
    seconds = interleave(calls, settings.rounds, settings.device)
    return [{"method": key, "graph_breaks": breaks[key], "seconds": seconds[key]} for key in calls]
