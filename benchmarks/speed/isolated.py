"""Run one function in a fresh process and read its JSON: for peaks of memory, and for imports."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import importlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
MIB = 2**20


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


class PeakMemory:
    """Peak MiB from here on: of the process's resident memory, and of the CUDA allocator where there is a card.

    The kernel's high-water mark is reset first, and freed memory is given back, so that loading does not count. Where
    the mark cannot be reset (not Linux), it covers the whole life of the process, and `whole_life` says so.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        libc = ctypes.util.find_library("c")
        if libc and hasattr(ctypes.CDLL(libc), "malloc_trim"):
            ctypes.CDLL(libc).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.whole_life = False
        except OSError:
            self.whole_life = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.before = self._resident("VmRSS")

    def result(self) -> dict[str, Any]:
        peak = {"before_mib": self.before, "peak_mib": self._resident("VmHWM"), "whole_life": self.whole_life}
        if self.device.type == "cuda":
            peak["allocator_mib"] = torch.cuda.max_memory_allocated(self.device) / MIB
        return peak

    def _resident(self, field: str) -> float:
        if self.whole_life:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"/proc/self/status has no {field}")


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
