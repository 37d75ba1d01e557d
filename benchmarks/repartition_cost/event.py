"""One event through the library's own planning and consolidation, and the seconds of both."""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import Any
from unittest import mock

from benchmarks.repartition_cost.layers import NAME, Adapted, other_labels

from localora import CpsLoraConfig
from localora.adapter.status import AdapterLayers
from localora.lifecycle import planning
from localora.lifecycle.repartition import consolidate, start_anew


def repartition(adapted: Adapted, config: CpsLoraConfig) -> dict[str, Any]:
    """Plan, consolidate and restart every layer; the observing passes, whose cost is the model's, are left out."""
    wall, cpu = time.perf_counter(), time.process_time()
    with mock.patch.object(planning, "gradient_sketches", return_value=adapted.sketches):
        adapter = AdapterLayers(NAME, config, adapted.layers)
        old = {key: adapter.partition(key) for key in adapted.layers}
        planning.plan_clusters(mock.Mock(batches=[]), adapter, old, None)
    planned = time.perf_counter()
    consolidate(adapter)
    start_anew(adapter, adapted.optimizer, step=1)
    for number, layer in enumerate(adapted.layers.values()):
        layer.place(NAME, other_labels(layer, number))
    done = time.perf_counter()
    return {
        "layers": len(adapted.layers),
        "frozen_rank": config.consolidated_rank,
        "wall_seconds": round(done - wall, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "parts": {"plan": round(planned - wall, 3), "consolidate, place, start anew": round(done - planned, 3)},
        "load_average": round(os.getloadavg()[0], 2),
    }


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
