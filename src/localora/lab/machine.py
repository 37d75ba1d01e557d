"""On what a result was made: the processor and its instruction set change the last digits, and those decide ties."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from localora.lifecycle.processes import processes

# Flags that change how numbers are rounded or how fast 16-bit ones are, beside those that torch's own level stands for.
FLAGS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "bf16", "sve")
CPUINFO = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, Any]:
    """What a record keeps. `cpu` is the processor's model, `instructions` what torch and its libraries make use of."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    name, flags = processor()
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cpu": name,
        "instructions": [torch.backends.cpu.get_cpu_capability(), *flags],
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "processes": processes()[1],
    }


def processor() -> tuple[str, list[str]]:
    """The processor's model and those of FLAGS that it has, as Linux tells them; elsewhere Python's name of it."""
    known: dict[str, str] = {}
    if CPUINFO.exists():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            known.setdefault(key.strip().lower(), value.strip())
    flags = (known.get("flags") or known.get("features") or "").split()
    name = known.get("model name") or platform.processor() or platform.machine()
    return name, [flag for flag in FLAGS if flag in flags]
