"""The nodes of a Ray cluster: how many runs they have room for, and whether they can do them."""

from __future__ import annotations

import logging
import math
from typing import Any

from localora.lab.compare.errors import PlanError
from localora.lab.compare.workers.node.checks import Needs, node_problems

CHECK_SECONDS = 120.0  # for all of them to answer

logger = logging.getLogger(__name__)


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
            raise PlanError(
                "--cluster", [f"no node has room for a run of {self._cpus:g} CPU, {self._gpus:g} GPU: {has}"]
            )
        if not self._gpus and any(node["Resources"].get("GPU") for node in nodes):
            logger.warning("the cluster has GPUs, and runs are given none of them")
        asked = {self._ask(node, needs): _name(node) for node in nodes}
        _, silent = self._ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_SECONDS)
        problems = [f"node {asked[each]}: no answer within {CHECK_SECONDS:.0f} s" for each in silent]
        for reference in asked:
            if reference not in silent:
                problems += [f"node {asked[reference]}: {problem}" for problem in self._answer(reference)]
        if problems:
            raise PlanError("--cluster", problems)

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
