"""The figures that tables and targets quote, computed from the samples in the JSON files and from nothing else."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.speed.timing import Spread, overhead_ratio, ratio

Rows = list[dict[str, Any]]


def by_method(rows: Rows, key: str = "method") -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in rows}


def step_ratio(rows: Rows, method: str, reference: str = "peft-lora", field: str = "seconds") -> Spread | None:
    """Time of a method over that of the reference; None if either is not in the cell."""
    found = by_method(rows)
    if method not in found or reference not in found:
        return None
    return ratio(found[method][field], found[reference][field])


def step_overhead(rows: Rows, method: str, reference: str = "peft-lora") -> Spread | None:
    """What a method takes beyond the frozen base, over what the reference takes beyond it."""
    found = by_method(rows)
    if not {method, reference, "floor"} <= found.keys():
        return None
    return overhead_ratio(found[method]["seconds"], found[reference]["seconds"], found["floor"]["seconds"])


def saved_ratio(rows: Rows, method: str, reference: str = "peft-lora") -> float:
    found = by_method(rows)
    return found[method]["saved_bytes"] / found[reference]["saved_bytes"]


def file_ratio(rows: Rows, method: str) -> float:
    found = by_method(rows)
    return found[method]["file_bytes"] / found["peft-lora"]["file_bytes"]


def peak_mib(row: dict[str, Any]) -> float:
    """The median of the runs: of the CUDA allocator where there is a card, else of the process's resident memory."""
    field = "allocator_mib" if "allocator_mib" in row["peaks"][0] else "peak_mib"
    return statistics.median(run[field] for run in row["peaks"])


def peak_ratio(rows: Rows, method: str, reference: str = "peft-lora") -> float:
    found = by_method(rows)
    return peak_mib(found[method]) / peak_mib(found[reference])


def calibration_ratio(rows: Rows, method: str) -> Spread:
    """One calibration batch over a training step of PEFT's LoRA on the same batch."""
    found = by_method(rows)
    return ratio(found[method]["batch_seconds"], found["peft-lora"]["step_seconds"])
