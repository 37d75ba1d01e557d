"""A Ray cluster: each run is a Ray task with its resources declared; what it wrote comes back to the driver's folder.

A node needs localora installed and the plan's model and data at the same place; it needs no shared file system. Ray
itself starts the runs of a lost node again on another.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from localora.compare.errors import PlanError
from localora.compare.runs import RunSpec
from localora.compare.store import Store
from localora.compare.workers.pool import QUIET, RUN_ONE, Done, last_words

RETRIES = 3  # of a run whose node or worker process was lost
SENT_BACK = ("run", "update.json", "log.txt")

Files = dict[str, bytes]  # path relative to the run's folder -> contents


class ClusterPool:
    """Submits every run that is due; Ray queues what has no free resources."""

    def __init__(self, store: Store, address: str, cpus: float = 1, gpus: float = 0, module: str = RUN_ONE) -> None:
        """Connect to the cluster at `address` ("auto" for the one on this machine).

        Raises:
            PlanError: Ray is not installed, or there is no such cluster.
        """
        try:
            import ray
        except ImportError as error:
            raise PlanError("--cluster", ["needs Ray: pip install 'localora[ray]'"]) from error
        self.store, self.module = store, module
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError) as error:
                raise PlanError("--cluster", [f"no Ray cluster at {address!r}: {error}"]) from error
        self._ray = ray
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(run_remotely)
        self._running: dict[Any, RunSpec] = {}

    @property
    def slots(self) -> int:
        return 10_000

    def submit(self, spec: RunSpec, job: str) -> None:
        self._running[self._task.remote(job, self.module)] = spec

    def wait(self, seconds: float) -> list[Done]:
        references = list(self._running)
        over, _ = self._ray.wait(references, num_returns=1, timeout=seconds)
        return [self._collect(reference, self._running.pop(reference)) for reference in over]

    def close(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()

    def _collect(self, reference: Any, spec: RunSpec) -> Done:
        try:
            code, files = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Done(spec, 1, f"lost by the cluster: {str(error).strip().splitlines()[0]}")
        folder = self.store.path(spec)
        for name, contents in sorted(files.items(), key=lambda item: item[0].endswith("run.json")):  # the record last
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            partial.write_bytes(contents)
            partial.replace(path)
        return Done(spec, code, last_words(folder / "log.txt", code))


def run_remotely(job: str, module: str) -> tuple[int, Files]:
    """On a node: the run in a process of its own, in a temporary folder; its exit code and what it wrote."""
    with tempfile.TemporaryDirectory(prefix="localora-") as temporary:
        folder = Path(temporary)
        (folder / "job.json").write_text(job, encoding="utf-8")
        with (folder / "log.txt").open("wb") as log:
            command = [sys.executable, "-m", module, str(folder / "job.json")]
            environment = {**os.environ, **QUIET}
            process = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False
            )
        files = [path for path in folder.rglob("*") if path.is_file()]
        names = {str(path.relative_to(folder)): path for path in files}
        return process.returncode, {
            name: path.read_bytes()
            for name, path in names.items()
            if Path(name).parts[0] in SENT_BACK and "checkpoints" not in Path(name).parts
        }
