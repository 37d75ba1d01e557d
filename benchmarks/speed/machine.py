"""Where and with what a benchmark ran."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from localora.lab.machine import processor

PACKAGES = ("torch", "peft", "transformers", "safetensors", "numpy", "localora")
VARIABLES = ("ATEN_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "MALLOC_", "ONEDNN_", "DNNL_", "PYTORCH_", "CUDA_")


def environment(device: torch.device) -> dict[str, Any]:
    """Processor, card, versions, threads, and the environment variables that change them."""
    return {
        "device": device.type,
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "processor": processor()[0],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "threads": torch.get_num_threads(),
        "variables": {key: value for key, value in sorted(os.environ.items()) if key.startswith(VARIABLES)},
    }


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether figures of both may stand in one table; the commit may differ between sections."""
    return all(one.get(key) == other.get(key) for key in one if key != "commit")


def load_average() -> float:
    """Processes that wanted a core in the last minute: above the threads used, the machine was not quiet."""
    return round(os.getloadavg()[0], 2)


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
