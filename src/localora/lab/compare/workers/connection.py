"""A connection to a Ray cluster, or a clear error within a minute."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

from localora.lab.compare.errors import PlanError

CONNECT_SECONDS = 60.0
TRY = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


def connect(address: str) -> Any:
    """The ray module, connected to the cluster at `address` ("auto": the one this machine is part of).

    Raises:
        PlanError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise PlanError("--cluster", ["needs Ray: pip install 'localora[ray]'"]) from error
    _try(address)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
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
    return PlanError("--cluster", [f"no Ray cluster at {address!r} ({reason}); {remedy}"])
