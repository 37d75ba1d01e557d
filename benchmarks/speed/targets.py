"""What we set out to reach, and whether the results reach it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.speed import figures
from benchmarks.speed.calibrate import WORKLOADS as CALIBRATED
from benchmarks.speed.markdown import label, table
from benchmarks.speed.methods import OURS, PLACED
from benchmarks.speed.timing import Spread, ratio
from benchmarks.speed.training import WORKLOADS

Results = dict[str, dict[str, Any]]
Measured = Iterator[tuple[str, float]]  # where, value

MAIN_CELL = f"{WORKLOADS[0].title}, bf16"
BLOCK = WORKLOADS[-1].title
STEP_BOUNDS = {"lora": 0.85, "g-lora": 0.88, "cps-lora-4": 0.92}
OVERHEAD_BOUNDS = {"lora": 0.5, "g-lora": 0.6, "cps-lora-4": 0.75}
FILE_BOUNDS = {"SmolLM2-135M, r 8": 1.07, "SmolLM2-135M, r 32": 1.02}


@dataclass(frozen=True)
class Target:
    """A bound on every measured value of one figure; the worst of them decides."""

    figure: str
    bound: float
    values: tuple[tuple[str, float], ...]

    def row(self) -> list[str]:
        """Of the table; empty where nothing was measured."""
        if not self.values:
            return []
        where, worst = max(self.values, key=lambda item: item[1])
        met = sum(value <= self.bound for _, value in self.values)
        verdict = "met" if worst <= self.bound else f"missed by {worst - self.bound:.3f}"
        if len(self.values) > 1:
            verdict += f" ({met} of {len(self.values)} within)"
        return [self.figure, f"<= {self.bound:.2f}", f"{worst:.3f}", where, verdict]


def targets(results: Results) -> str:
    """The table of the targets that were measured here, and the names of the others."""
    head = ["figure, over PEFT LoRA's", "target", "worst measured", "where", "verdict"]
    rows = [row for target in all_targets(results) if (row := target.row())]
    others = [target.figure for target in all_targets(results) if not target.values]
    if not rows:
        return "None of the targets was measured here."
    return table(head, rows) + (f"\n\nNot measured here: {'; '.join(others)}." if others else "")


def all_targets(results: Results) -> list[Target]:
    training = _rows(results, "training")
    main = training.get(MAIN_CELL, [])
    found = [
        Target(f"training step, {label(key)}", bound, _one(figures.step_ratio(main, key)))
        for key, bound in STEP_BOUNDS.items()
    ]
    found += [
        Target(f"overhead beyond the frozen base, {label(key)}", bound, _one(figures.step_overhead(main, key)))
        for key, bound in OVERHEAD_BOUNDS.items()
    ]
    block = {cell: rows for cell, rows in training.items() if cell.startswith(BLOCK)}
    files = _rows(results, "files")
    found += [
        Target("training step, Llama block", 1.0, tuple(_all(block, figures.step_ratio))),
        Target("bytes saved for backward", 1.0, tuple(_all(_rows(results, "saved"), figures.saved_ratio))),
        Target("peak memory in training", 1.01, tuple(_all(_rows(results, "memory"), figures.peak_ratio))),
        Target("un-merged prefill", 1.0, tuple(_all(_unmerged(results), _inference("prefill_seconds")))),
        Target("un-merged decode", 1.0, tuple(_all(_unmerged(results), _inference("decode_seconds")))),
        Target("merged inference over the base model, beyond noise", 1.0, tuple(_merged(results))),
        Target("calibration, time of a batch", 1.6, tuple(_calibration(results, "time"))),
        Target("calibration, peak memory", 1.05, tuple(_calibration(results, "memory"))),
    ]
    found += [
        Target(f"adapter file, {cell}", bound, tuple(_all({cell: files.get(cell, [])}, figures.file_ratio)))
        for cell, bound in FILE_BOUNDS.items()
    ]
    found += [
        Target("import, over peft's", 1.1, tuple(_import(results))),
        Target("injection into 30 layers", 1.1, tuple(_injection(results))),
        Target("load", 1.1, tuple(_all(files, _inference("load_seconds")))),
    ]
    return found


def _rows(results: Results, section: str) -> dict[str, figures.Rows]:
    return {cell: value["rows"] for cell, value in results.get(section, {}).get("cells", {}).items()}


def _one(value: Spread | None) -> tuple[tuple[str, float], ...]:
    return ((MAIN_CELL, value.median),) if value else ()


def _all(cells: dict[str, figures.Rows], value_of: Any) -> Measured:
    for cell, rows in cells.items():
        for key in OURS:
            if key not in figures.by_method(rows):
                continue
            value = value_of(rows, key)
            yield f"{label(key)}; {cell}", value.median if isinstance(value, Spread) else value


def _inference(field: str) -> Any:
    return lambda rows, key: figures.step_ratio(rows, key, field=field)


def _unmerged(results: Results) -> dict[str, figures.Rows]:
    return {cell: rows for cell, rows in _rows(results, "inference").items() if cell.startswith("un-merged")}


def _merged(results: Results) -> Measured:
    """The lower quartile: above 1 only where even the faster rounds were slower than the base."""
    for cell, rows in _rows(results, "inference").items():
        for key in OURS:
            for field in ("prefill_seconds", "decode_seconds"):
                value = figures.step_ratio(rows, key, "floor", field)
                if value and cell.startswith("merged"):
                    yield f"{label(key)}; {cell}, {field.removesuffix('_seconds')}", value.low


def _calibration(results: Results, kind: str) -> Measured:
    for workload in CALIBRATED:
        for cell, rows in _rows(results, "calibration").items():
            if not cell.startswith(f"{kind}, {workload.title}"):
                continue
            for key in PLACED:
                value = figures.calibration_ratio(rows, key).median if kind == "time" else figures.peak_ratio(rows, key)
                yield f"{label(key)}; {cell.removeprefix(kind + ', ')}", value


def _import(results: Results) -> Measured:
    rows = _rows(results, "startup").get("import")
    if rows:
        found = figures.by_method(rows, "module")
        yield "import", ratio(found["localora"]["seconds"], found["peft"]["seconds"]).median


def _injection(results: Results) -> Measured:
    rows = _rows(results, "startup").get("injection", [])
    if rows:
        reference = figures.by_method(rows)["peft-lora"]["seconds"]
        for row in rows:
            if row["method"] in OURS:
                yield f"{label(row['method'])}, {row['placement']}", ratio(row["seconds"], reference).median
