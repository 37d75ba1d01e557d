"""One event through the library's own planning and consolidation, with the seconds of each of its parts.

Layers are planned side by side, one a thread, so the seconds of the parts add up to more than those on the clock.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from benchmarks.repartition_cost.layers import NAME, Adapted, other_labels

from localora import CpsLoraConfig
from localora.adapter.status import AdapterLayers
from localora.lifecycle import planning
from localora.lifecycle.repartition import consolidate, start_anew

PARTS = {"plan_coclusters": "co-clusters, from the present ones"}
MOVE = "consolidate, place at random labels, start anew"


def repartition(adapted: Adapted, config: CpsLoraConfig) -> dict[str, Any]:
    """Plan, consolidate and restart every layer; the observing passes, whose cost is the model's, are left out."""
    with (
        _parts_timed() as seconds,
        mock.patch.object(planning, "gradient_sketches", return_value=adapted.sketches),
    ):
        wall, cpu = time.perf_counter(), time.process_time()
        adapter = AdapterLayers(NAME, config, adapted.layers)
        old = {key: adapter.partition(key) for key in adapted.layers}
        planning.plan_clusters(mock.Mock(batches=[]), adapter, old, None)
        moving = time.perf_counter()
        consolidate(adapter)
        start_anew(adapter, adapted.optimizer, step=1)
        for number, layer in enumerate(adapted.layers.values()):
            layer.place(NAME, other_labels(layer, number))
        seconds[MOVE] = time.perf_counter() - moving
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "layers": len(adapted.layers),
        "frozen_rank": config.consolidated_rank,
        "wall_seconds": round(wall, 3),
        "cpu_seconds": round(cpu, 3),
        "parts": {name: round(spent, 3) for name, spent in seconds.items()},
        "load_average": round(os.getloadavg()[0], 2),
    }


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _parts_timed() -> Iterator[dict[str, float]]:
    seconds: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - started

        return call

    functions = {name: timed(part, getattr(planning, name)) for name, part in PARTS.items()}
    with mock.patch.multiple(planning, **functions):
        yield seconds
