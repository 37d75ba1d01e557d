"""Run one function in a fresh process and read its JSON: for peaks of memory, and for imports."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from localora.lab.training.memory import PeakMemory

ROOT = Path(__file__).parents[2]


def call(function: str, **arguments: Any) -> dict[str, Any]:
    """The dict that `function` ("module:name") returns in a process of its own, with this one's threads.

    Raises:
        RuntimeError: the process failed; its last words are in the message.
    """
    payload = json.dumps({"function": function, "arguments": arguments, "threads": torch.get_num_threads()})
    command = [sys.executable, "-m", "benchmarks.speed.isolated", payload]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if result.returncode != 0:
        raise RuntimeError(f"{function} failed with {arguments}:\n{result.stderr.strip()[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def peaks(memory: PeakMemory, device: torch.device) -> dict[str, float]:
    """MiB, ready for JSON: before and at the peak, and of the CUDA allocator where the work was done on a card."""
    found = {"before_mib": memory.before_mib, "peak_mib": memory.process_mib}
    return found | ({"allocator_mib": memory.mib} if device.type == "cuda" else {})


def seconds_to_import(module: str) -> dict[str, Any]:
    """For a process of its own, in which nothing but torch was imported before."""
    started = time.perf_counter()
    importlib.import_module(module)
    return {"seconds": time.perf_counter() - started}


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    module, _, name = job["function"].partition(":")
    result = getattr(importlib.import_module(module), name)(**job["arguments"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
