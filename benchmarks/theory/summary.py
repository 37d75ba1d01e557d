"""From runs to tables: means over seeds with 95 % t-intervals, and parameters at equal error."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from benchmarks.theory.grid import (
    AT_EQUAL_ERROR,
    DIAL_CLUSTERS,
    FIRST_LR,
    LR_FACTOR,
    RANK,
    Cell,
    Scale,
    cells,
    needed,
    run_of,
    tuned_lr,
)
from benchmarks.theory.store import Store, task
from benchmarks.theory.students import STUDENTS
from scipy import stats

Interval = dict[str, float]


def summarise(scale: Scale, store: Store) -> dict[str, Any]:
    """All figures of the pages and pictures, JSON-ready."""
    return {
        "scale": scale.name,
        "seeds": len(scale.seeds),
        "steps": scale.steps,
        "rank": RANK,
        "tables": [
            _row(cell, scale, store)
            for cell in cells(scale)
            if cell.overlap == 0 and cell.r in (RANK, RANK * cell.clusters)
        ],
        "curves": [_row(cell, scale, store) for cell in cells(scale) if cell.task == "linear" and cell.overlap == 0],
        "dial": [
            _row(cell, scale, store)
            for cell in cells(scale)
            if cell.task == "linear" and cell.clusters == DIAL_CLUSTERS and cell.r in (RANK, RANK * DIAL_CLUSTERS)
        ],
        "parameters_at_equal_error": [
            _equal_error(cell, scale, store)
            for cell in cells(scale)
            if cell.student in AT_EQUAL_ERROR and cell.overlap == 0 and cell.r in scale.ranks
        ],
    }


def _row(cell: Cell, scale: Scale, store: Store) -> dict[str, Any]:
    errors = _errors(cell, scale, store)
    lr = _lr(cell, scale, store)
    results = [store.results[run_of(cell, scale, seed, lr)] for seed in scale.seeds]
    against = {"oracle": "cps-oracle", "lora": "lora"}
    return {
        "task": cell.task,
        "clusters": cell.clusters,
        "overlap": cell.overlap,
        "student": cell.student,
        "label": STUDENTS[cell.student].label
        + (f", {cell.clusters} times the parameters" if _is_large_lora(cell) else ""),
        "r": cell.r,
        "parameters": results[0]["parameters"],
        "lr": lr,
        "error": interval(errors),
        "optimum": _optimum(cell, scale),
        "agreement": _mean([result["agreement"] for result in results]),
        **{
            f"relative_to_{name}": _relative(
                errors, Cell(cell.task, cell.clusters, cell.overlap, other, RANK), scale, store
            )
            for name, other in against.items()
        },
    }


def _is_large_lora(cell: Cell) -> bool:
    return cell.student == "lora" and cell.r == cell.clusters * RANK


def _equal_error(cell: Cell, scale: Scale, store: Store) -> dict[str, Any]:
    """LoRA's parameters over the student's where LoRA's error is the student's, seed by seed.

    Between the ranks that were trained, LoRA's error is taken as linear in the rank: between multiples of K it is so
    at the optimum of the linear task, since the K blocks share one spectrum. Seeds whose error lies outside the curve
    have no ratio: they are counted as `worse` (than LoRA at the lowest rank) or `better` (than at the highest).
    """
    loras = sorted(
        (c for c in cells(scale) if replace(c, r=cell.r) == replace(cell, student="lora")), key=lambda c: c.r
    )
    curves = [_errors(lora, scale, store) for lora in loras]
    errors = _errors(cell, scale, store)
    ranks = [
        needed(error, [lora.r for lora in loras], [curve[number] for curve in curves])
        for number, error in enumerate(errors)
    ]
    ratios = [rank / cell.r for rank in ranks if rank is not None]
    return {
        "task": cell.task,
        "clusters": cell.clusters,
        "student": cell.student,
        "r": cell.r,
        "bound": cell.clusters,
        "ratio": interval(ratios) if len(ratios) > 1 else None,
        "worse": sum(error > theirs for error, theirs in zip(errors, curves[0], strict=True)),
        "better": sum(error < theirs for error, theirs in zip(errors, curves[-1], strict=True)),
        "highest": loras[-1].r / cell.r,
    }


def _relative(errors: list[float], other: Cell, scale: Scale, store: Store) -> Interval | None:
    """The error over the other's on the same teacher, seed by seed."""
    if other not in cells(scale):
        return None
    theirs = _errors(other, scale, store)
    return interval([mine / their for mine, their in zip(errors, theirs, strict=True)])


def _errors(cell: Cell, scale: Scale, store: Store) -> list[float]:
    lr = _lr(cell, scale, store)
    return [store.error(run_of(cell, scale, seed, lr)) for seed in scale.seeds]


def _lr(cell: Cell, scale: Scale, store: Store) -> float:
    return tuned_lr(cell, scale, store) if scale.tune else FIRST_LR * LR_FACTOR


def _optimum(cell: Cell, scale: Scale) -> float | None:
    """Mean over seeds of the least error: of rank r for LoRA, of the planted clusters for CPS-LoRA."""
    if cell.student not in ("lora", "cps-oracle", "cps-found"):
        return None
    clusters = 1 if cell.student == "lora" else cell.clusters
    return _mean([task(cell.task, cell.clusters, cell.overlap, seed).optimum(cell.r, clusters) for seed in scale.seeds])


def interval(values: list[float]) -> Interval:
    """Mean and the half width of its 95 % t-interval."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return {"mean": mean, "half": half}


def _mean(values: list[Any]) -> float | None:
    return None if None in values else sum(values) / len(values)
