"""A pool of processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import torch

from localora.files import write_file
from localora.lab.compare.runs import RunSpec
from localora.lab.compare.store import Store, write_text
from localora.lab.compare.workers.pool import QUIET, RUN_ONE, Done, last_words

POLL_SECONDS = 0.1


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
