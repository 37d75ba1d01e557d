"""What a place to run must offer, and a pool of processes on this machine, which does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from localora.files import write_file
from localora.lab.compare.runs import RunSpec
from localora.lab.compare.store import Store, write_text

RUN_ONE = "localora.lab.compare.run_one"
QUIET = {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore::FutureWarning", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
LOG_LINES = 4  # of a failed run's log that its error quotes
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Done:
    spec: RunSpec
    code: int  # the exit code of the run's process; negative: killed by that signal
    error: str  # what it said last


class Pool(Protocol):
    @property
    def slots(self) -> int:
        """Runs that may be submitted at a time."""

    def submit(self, spec: RunSpec, job: str) -> None:
        """Start a run; `job` is the text of its job file."""

    def wait(self, seconds: float) -> list[Done]:
        """Runs that ended; after at most so many seconds, possibly none."""

    def close(self) -> None:
        """End what still runs."""


class LocalPool:
    """Runs each in a Python process of its own, `jobs` at a time."""

    def __init__(self, store: Store, jobs: int = 1, module: str = RUN_ONE) -> None:
        self.store, self.slots, self.module = store, jobs, module
        self._running: dict[RunSpec, subprocess.Popen[bytes]] = {}

    def submit(self, spec: RunSpec, job: str) -> None:
        folder = self.store.path(spec)
        write_text(folder / "job.json", job)
        # All at once would else use every core each; the share of one is no more than it would be given.
        threads = max(1, torch.get_num_threads() // self.slots)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **QUIET}
        write_file(folder / "log.txt", "")  # an error of the disk is ours to name, before the run's own
        with (folder / "log.txt").open("wb") as log:
            self._running[spec] = subprocess.Popen(
                [sys.executable, "-m", self.module, str(folder / "job.json"), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def wait(self, seconds: float) -> list[Done]:
        end = time.monotonic() + seconds
        while True:
            over = {spec: process for spec, process in self._running.items() if process.poll() is not None}
            if over or time.monotonic() >= end:
                break
            time.sleep(POLL_SECONDS)
        for spec in over:
            del self._running[spec]
        return [
            Done(spec, process.returncode, last_words(self.store.path(spec) / "log.txt", process.returncode))
            for spec, process in over.items()
        ]

    def close(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def last_words(log: Path, code: int) -> str:
    """The end of a log as an error."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()][-LOG_LINES:]
    cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return "\n".join([*lines, f"({cause})"])
