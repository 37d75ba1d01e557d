"""Interleaved timing, and the statistics the tables are made of."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

WARMUPS = 2


def interleave(
    calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, warmups: int = WARMUPS
) -> dict[str, list[float]]:
    """Seconds of each call in each round, taken A B C A B C so that a drift of the machine meets all alike."""
    seconds: dict[str, list[float]] = {key: [] for key in calls}
    with _no_collections():
        for number in range(warmups + rounds):
            for key, call in calls.items():
                gc.collect()
                _synchronize(device)
                started = time.perf_counter()
                call()
                _synchronize(device)
                if number >= warmups:
                    seconds[key].append(time.perf_counter() - started)
    return seconds


@contextmanager
def _no_collections() -> Iterator[None]:
    """No garbage collection but the one before each call, and that one spared the objects that are there already."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Spread(NamedTuple):
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Of the ratios round by round: both sides of a pair saw the same moment of the machine."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def overhead_ratio(ours: Sequence[float], theirs: Sequence[float], floor: Sequence[float]) -> Spread | None:
    """(ours - floor) / (theirs - floor) round by round; None where noise hides that the other costs anything."""
    pairs = [(a - f, b - f) for a, b, f in zip(ours, theirs, floor, strict=True)]
    if any(b <= 0 for _, b in pairs):
        return None
    return Spread.of([a / b for a, b in pairs])
