"""Which students meet which teachers, and the learning rate of each: tuned on a seed that no result uses.

Shape legend
    r   rank of a student      K   planted blocks
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.theory.store import Run, Store
from benchmarks.theory.students import STUDENTS

RANK = 4  # of the tables
CLUSTERS = (2, 4, 8)
OVERLAPS = (0.1, 0.25, 0.5, 1.0)  # of the dial, at DIAL_CLUSTERS; 0 is in the tables
DIAL_CLUSTERS = 4
# held against LoRA
AT_EQUAL_ERROR = {"cps-oracle": "oracle", "cps-found": "found", "cps-update": "found in an update"}
TUNING_SEED = 100
FIRST_LR, LR_FACTOR = 1e-2, 3.0
LOWEST_LR, HIGHEST_LR = 1e-4, 1.0


@dataclass(frozen=True)
class Scale:
    """How much is run: `full` is the published grid, `quick` the same in small."""

    name: str
    clusters: tuple[int, ...]
    overlaps: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: dict[str, int]
    tune: bool
    ranks: tuple[int, ...]  # of CPS-LoRA on the curve of error against parameters
    multiples: tuple[int, ...]  # LoRA's ranks on that curve, in units of K


FULL = Scale(
    "full", CLUSTERS, OVERLAPS, tuple(range(5)), {"linear": 500, "transformer": 1000}, True, (1, 2, 4), (1, 2, 3, 4, 5)
)
QUICK = Scale("quick", (4,), (1.0,), (0, 1), {"linear": 150}, False, (4,), (3, 4, 5))


@dataclass(frozen=True)
class Cell:
    """One student on one teacher, all seeds."""

    task: str
    clusters: int
    overlap: float
    student: str
    r: int


def cells(scale: Scale) -> list[Cell]:
    """Every cell of the grid once: tables first, then the curves, the dial and the transformer."""
    found: dict[Cell, None] = {}
    for K in scale.clusters:
        found.update(dict.fromkeys(_table(K)))
    for K in scale.clusters:
        found.update(dict.fromkeys(_curve(K, scale)))
    for overlap in scale.overlaps:
        found.update(dict.fromkeys(_dial(overlap)))
    if "transformer" in scale.steps:
        found.update(dict.fromkeys(_transformer(DIAL_CLUSTERS, scale)))
    return list(found)


def _table(K: int) -> Iterator[Cell]:
    for key, student in STUDENTS.items():
        if student.labels != "update":  # the linear layer's gradient shows its blocks
            yield Cell("linear", K, 0.0, key, RANK)
    yield Cell("linear", K, 0.0, "lora", K * RANK)


def _transformer(K: int, scale: Scale) -> Iterator[Cell]:
    updates = [key for key, student in STUDENTS.items() if student.labels == "update"]
    for key in ("lora", "cps-oracle", "cps-found", *updates, "cps-random"):
        yield Cell("transformer", K, 0.0, key, RANK)
    for multiple in scale.multiples[1:4]:
        yield Cell("transformer", K, 0.0, "lora", K * multiple)


def _curve(K: int, scale: Scale) -> Iterator[Cell]:
    for r in scale.ranks:
        for student in ("lora", "cps-oracle", "cps-found"):
            yield Cell("linear", K, 0.0, student, r)
    for multiple in scale.multiples:
        yield Cell("linear", K, 0.0, "lora", K * multiple)


def _dial(overlap: float) -> Iterator[Cell]:
    for student in ("lora", "cps-oracle", "cps-found", "cps-free"):
        yield Cell("linear", DIAL_CLUSTERS, overlap, student, RANK)
    yield Cell("linear", DIAL_CLUSTERS, overlap, "lora", DIAL_CLUSTERS * RANK)


def measure(cell: Cell, scale: Scale, store: Store) -> None:
    """Run what the store lacks of a cell: the tuning of its learning rate, then every seed at the best."""
    lr = tuned_lr(cell, scale, store) if scale.tune else FIRST_LR * LR_FACTOR
    for seed in scale.seeds:
        store.error(run_of(cell, scale, seed, lr))


def tuned_lr(cell: Cell, scale: Scale, store: Store) -> float:
    """The learning rate with the least error, by steps of LR_FACTOR from FIRST_LR until both neighbours are worse."""
    errors: dict[int, float] = {}

    def error(power: int) -> float:
        if power not in errors:
            errors[power] = store.error(run_of(cell, scale, TUNING_SEED, _lr(power)))
        return errors[power]

    best = 0
    while True:
        around = [power for power in (best - 1, best, best + 1) if LOWEST_LR <= _lr(power) <= HIGHEST_LR]
        better = min(around, key=error)
        if better == best:
            return _lr(best)
        best = better


def run_of(cell: Cell, scale: Scale, seed: int, lr: float) -> Run:
    return Run(cell.task, cell.clusters, cell.overlap, cell.student, cell.r, seed, lr, scale.steps[cell.task])


def needed(error: float, ranks: list[int], errors: list[float]) -> float | None:
    """The rank at which a curve of falling errors reaches `error`, linear between its points; None if outside it."""
    for (low, above), (high, below) in pairwise(zip(ranks, errors, strict=True)):
        if above >= error >= below:
            return low + (high - low) * ((above - error) / (above - below) if above > below else 0.0)
    return None


def _lr(power: int) -> float:
    return float(f"{FIRST_LR * LR_FACTOR**power:.3g}")
