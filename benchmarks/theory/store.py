"""Runs on disk, one JSON line each, written as each ends: what is there is not run again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.theory.students import STUDENTS, train
from benchmarks.theory.tasks import TASKS, Task


@dataclass(frozen=True)
class Run:
    """All that a run depends on."""

    task: str
    clusters: int
    overlap: float
    student: str
    r: int
    seed: int
    lr: float
    steps: int


class Store:
    """The runs of one folder.

    Args:
        path: a `.jsonl` file; made with the first run.
        say: told of every new run.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.path, self.say = path, say
        self.results: dict[Run, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                record = json.loads(line)
                self.results[Run(**record["run"])] = record["result"]

    def error(self, run: Run) -> float:
        """Of that run; trains it if it is not there."""
        if run not in self.results:
            started = time.perf_counter()
            trained = train(_task(run), STUDENTS[run.student], run.r, run.seed, run.lr, run.steps)
            self.results[run] = asdict(trained) | {"seconds": round(time.perf_counter() - started, 2)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"run": asdict(run), "result": self.results[run]}) + "\n")
            self.say(f"{run.task} K {run.clusters} overlap {run.overlap} {run.student} r {run.r} seed {run.seed} "
                     f"lr {run.lr:g}: {trained.error:.4f}")  # fmt: skip
        return float(self.results[run]["error"])


def _task(run: Run) -> Task:
    return task(run.task, run.clusters, run.overlap, run.seed)


@lru_cache(maxsize=8)
def task(name: str, clusters: int, overlap: float, seed: int) -> Task:
    """The teacher of a seed: every student meets the same ones."""
    return TASKS[name](clusters, overlap, seed)
