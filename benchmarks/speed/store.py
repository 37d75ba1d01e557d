"""Results on disk: one JSON file a section, written after every cell, so that a run can stop and go on.

{"environment": ..., "cells": {cell: {"load": [before, after], "commit": ..., "rounds": 7, "rows": [...]}}}
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.machine import environment, load_average, same_machine
from benchmarks.speed.workloads import Settings

from localora.files import write_file

Row = dict[str, Any]
Cells = dict[str, Callable[[], list[Row]]]


class StoreError(RuntimeError):
    """Results that cannot go into one table."""


def run_section(name: str, cells: Cells, settings: Settings, *, again: bool, say: Callable[[str], None]) -> None:
    """Measure those of `cells` that the section's file lacks, all of them with `again`; it keeps its other cells.

    After `settings.until` no other cell is begun.

    Raises:
        StoreError: the file's other cells were measured on another machine or with other versions.
    """
    path = settings.out / f"{name}.json"
    here = environment(settings.device)
    result: dict[str, Any] = {"environment": here, "cells": {}}
    if path.exists():
        earlier = json.loads(path.read_text())
        kept = {cell: value for cell, value in earlier["cells"].items() if not (again and cell in cells)}
        if kept and not kept.keys() >= cells.keys() and not same_machine(earlier["environment"], here):
            raise StoreError(
                f"{path} holds results of another machine, other versions, threads or environment variables; "
                "measure the whole section --again, or give another --out"
            )
        if kept:
            result = {"environment": earlier["environment"], "cells": kept}
    for cell, measure in cells.items():
        if cell in result["cells"]:
            say(f"{name}: {cell}: measured already")
            continue
        if time.monotonic() > settings.until:
            say(f"{name}: {cell}: no time left; the same command goes on from here")
            continue
        say(f"{name}: {cell}")
        before = load_average()
        rows = measure()
        result["cells"][cell] = {
            "load": [before, load_average()],
            "commit": here["commit"],
            "rounds": settings.rounds,
            "rows": rows,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(result, indent=1) + "\n")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Section -> what its file holds; sections not measured yet are absent."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def folder_name(device: torch.device) -> str:
    """Where results of a device go by default: cpu, or the card's name."""
    if device.type == "cpu":
        return "cpu"
    return torch.cuda.get_device_name(device).lower().replace(" ", "-")
