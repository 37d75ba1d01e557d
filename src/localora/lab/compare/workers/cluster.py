"""A Ray cluster: each run is a Ray task with its resources declared; what it wrote comes back to the driver's folder.

A node needs what localora needs, and the plan's local model and data at the same place. localora itself is sent there,
and a shared file system is not needed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localora.files import make_folder, write_file
from localora.lab.compare.plan import Plan, PlanError
from localora.lab.compare.runs import RunSpec
from localora.lab.compare.store import Store
from localora.lab.compare.workers import node
from localora.lab.compare.workers.local import QUIET, RUN_ONE, Done, last_words
from localora.lab.compare.workers.node import run_remotely
from localora.lab.compare.workers.nodes import Nodes, connect, needs_of
from localora.lab.training.folder import remove

RETRIES = 3  # of a run that was lost with its node or worker; one that failed by itself is not started again here
CANCEL_SECONDS = 10.0  # for runs to end and clean up, before they are killed
RUN = "run"  # holds the record: it comes last, in one step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Try:
    spec: RunSpec
    job: str
    number: int = 1


class ClusterPool:
    """As many runs at a time as the cluster has room for, each with `cpus` CPUs and `gpus` GPUs to itself."""

    def __init__(
        self, store: Store, address: str, plan: Plan, *, cpus: float = 1, gpus: float = 0, module: str = RUN_ONE
    ) -> None:
        """Connect to the cluster at `address`, HOST:PORT or "auto", and see that its nodes can do the runs of `plan`.

        Raises:
            PlanError: Ray is not installed; no cluster answers; no node has room for a run; or a node that has holds
                another version of a package, or not the model and data that the plan names.
        """
        if cpus <= 0 or gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            asked = f"{cpus:g} CPU, {gpus:g} GPU"
            raise PlanError("--cluster", f"a run takes some CPU, and whole GPUs or a part of one; got {asked}")
        self.store, self.module = store, module
        self._needs = needs_of(plan)
        self._environment = QUIET | {"OMP_NUM_THREADS": str(max(1, int(cpus)))}
        if not gpus:  # Ray hides none from a run that declares none
            self._environment["CUDA_VISIBLE_DEVICES"] = ""
        self._running: dict[Any, _Try] = {}
        self._ray = connect(address)
        try:
            self._ray.cloudpickle.register_pickle_by_value(node)
            # Ray would start lost runs again by itself, but without end when it is a node's memory that is full.
            self._task = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_remotely)
            self._nodes = Nodes(self._ray, cpus, gpus)
            self._nodes.check(self._needs)
            self._room = self._nodes.room()
        except BaseException:
            self._ray.shutdown()
            raise

    @property
    def slots(self) -> int:
        return max(1, self._room)  # with no node left, runs wait for one to join

    def submit(self, spec: RunSpec, job: str) -> None:
        self._start(_Try(spec, job))

    def wait(self, seconds: float) -> list[Done]:
        """As the protocol says; a run that was lost is not over, but started again.

        Raises:
            PlanError: a node that joined later cannot do the runs.
        """
        over, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        self._room = self._nodes.room()
        return [done for reference in over if (done := self._collect(reference, self._running.pop(reference)))]

    def close(self) -> None:
        running = list(self._running)
        self._running.clear()
        for reference in running:
            self._ray.cancel(reference)
        if running:
            _, stubborn = self._ray.wait(running, num_returns=len(running), timeout=CANCEL_SECONDS)
            for reference in stubborn:
                self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def _start(self, started: _Try) -> None:
        self._running[self._task.remote(started.job, self.module, self._needs, self._environment)] = started

    def _collect(self, reference: Any, tried: _Try) -> Done | None:
        try:
            name, problems, code, files = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            # Not the run failed but what surrounds it, with a full disk for example.
            return Done(tried.spec, 1, f"could not be run: {str(error).strip().splitlines()[-1]}")
        except self._ray.exceptions.RayError as error:
            return self._lost(tried, str(error).strip().splitlines()[0])
        if problems:
            raise PlanError("--cluster", *[f"node {name}: {problem}" for problem in problems])
        folder = self.store.path(tried.spec)
        receive({path: contents.data for path, contents in files.items()}, folder)
        return Done(tried.spec, code, last_words(folder / "log.txt", code))

    def _lost(self, tried: _Try, reason: str) -> Done | None:
        if tried.number > RETRIES:
            return Done(tried.spec, 1, f"lost by the cluster {tried.number} times: {reason}")
        logger.warning("%s was lost and is started again: %s", tried.spec.folder, reason)
        self._start(replace(tried, number=tried.number + 1))
        return None


def receive(files: Mapping[str, memoryview], folder: Path) -> None:
    """Put `files` (relative path -> contents) into a run's folder. Until all are there, it has no finished record.

    What an earlier try left under the same name goes, so that the folder never holds parts of two runs.
    """
    incoming = folder / ".incoming"
    remove(incoming)
    make_folder(incoming)
    for name, contents in files.items():
        path = incoming / name
        make_folder(path.parent)
        write_file(path, bytes(contents))
    for path in sorted(incoming.iterdir(), key=lambda path: path.name == RUN):
        remove(folder / path.name)
        path.rename(folder / path.name)
    incoming.rmdir()
