"""A Ray cluster seen from here: the connection, how many runs its nodes have room for, and whether they can do them."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import localora
from localora.lab.compare.plan import Plan, PlanError
from localora.lab.compare.workers.node import Needs, digest_all, node_problems, release
from localora.lab.training.record import PACKAGES

CONNECT_SECONDS = 60.0
CHECK_SECONDS = 120.0  # for all nodes to answer
TRY = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"

logger = logging.getLogger(__name__)


def connect(address: str) -> Any:
    """The ray module, connected to the cluster at `address` ("auto": the one this machine is part of).

    Raises:
        PlanError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise PlanError("--cluster", "needs Ray: pip install 'localora[ray]'") from error
    _try(address)
    ours = {"py_modules": [str(Path(localora.__file__).parent)]}  # nodes run the driver's own code
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=ours)
    return ray


def _try(address: str) -> None:
    """Connect in another process first: without an answer Ray waits for minutes, and cannot be interrupted."""
    command = [sys.executable, "-c", TRY, address]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise _no_cluster(address, f"no answer within {CONNECT_SECONDS:.0f} s") from error
    if tried.returncode != 0:
        lines = [line for line in tried.stderr.splitlines() if line.strip()]
        raise _no_cluster(address, lines[-1] if lines else f"exit code {tried.returncode}")


def _no_cluster(address: str, reason: str) -> PlanError:
    remedy = (
        "give the HOST:PORT that `ray start --head` printed, on a machine that has joined with "
        "`ray start --address=HOST:PORT`; there `auto` does as well"
    )
    return PlanError("--cluster", f"no Ray cluster at {address!r} ({reason}); {remedy}")


def needs_of(plan: Plan) -> Needs:
    """This machine's packages, and the local files that `plan` names, with their contents' digests.

    A model or data set of the Hub, and smollm2-135m, are no local files: each node fetches them once.
    """
    return {
        "versions": {name: release(name) for name in PACKAGES if name != "localora"},  # that one is sent
        "directory": str(Path.cwd()),
        "files": {name: digest_all(Path(name).expanduser()) for name in local_names(plan)},
    }


def local_names(plan: Plan) -> list[str]:
    """Files and folders of this machine that the plan names, as it names them."""
    data = [
        name for spec in (*plan.tasks.values(), *plan.watch.values()) for files in spec.files.values() for name in files
    ]
    model = [plan.model.name] if Path(plan.model.name).expanduser().is_dir() else []
    published = [plan.published.data] if plan.published.tasks and plan.published.data else []
    return list(dict.fromkeys(model + data + published))


class Nodes:
    """Those that are alive; `ray` is the module, connected, and every run takes `cpus` CPUs and `gpus` GPUs."""

    def __init__(self, ray: Any, cpus: float, gpus: float) -> None:
        self._ray, self._cpus, self._gpus = ray, cpus, gpus

    def room(self) -> int:
        """Runs that fit on all of them together."""
        return sum(self._room(node["Resources"]) for node in self._alive())

    def check(self, needs: Needs) -> None:
        """Ask every node that runs may be sent to, all at once.

        Raises:
            PlanError: none has room for a run; or names each node that cannot do the runs, and why.
        """
        nodes = [node for node in self._alive() if self._room(node["Resources"])]
        if not nodes:
            has = "; ".join(f"{_name(node)} has {_size(node['Resources'])}" for node in self._alive())
            raise PlanError("--cluster", f"no node has room for a run of {self._cpus:g} CPU, {self._gpus:g} GPU: {has}")
        if not self._gpus and any(node["Resources"].get("GPU") for node in nodes):
            logger.warning("the cluster has GPUs, and runs are given none of them")
        asked = {self._ask(node, needs): _name(node) for node in nodes}
        _, silent = self._ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_SECONDS)
        problems = [f"node {asked[each]}: no answer within {CHECK_SECONDS:.0f} s" for each in silent]
        for reference in asked:
            if reference not in silent:
                problems += [f"node {asked[reference]}: {problem}" for problem in self._answer(reference)]
        if problems:
            raise PlanError("--cluster", *problems)

    def _ask(self, node: dict[str, Any], needs: Needs) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        return self._ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(node_problems).remote(needs)

    def _answer(self, reference: Any) -> list[str]:
        try:
            return list(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            return [f"cannot be checked: {str(error).strip().splitlines()[-1]}"]
        except self._ray.exceptions.RayError:  # lost by now, which Ray notices late; that is no reason to refuse
            return []

    def _alive(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _room(self, resources: dict[str, float]) -> int:
        room = math.floor(resources.get("CPU", 0) / self._cpus)
        return min(room, math.floor(resources.get("GPU", 0) / self._gpus)) if self._gpus else room


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"


def _size(resources: dict[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU"
