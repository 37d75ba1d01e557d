"""The number format a model is loaded in; `auto` asks the machine.

A processor without bfloat16 units multiplies bfloat16 five to fifty times slower than float32, one with them two to
four times faster. Its flags do not tell: they name what it has, not what the libraries on it use. So one is timed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch

SHAPE = (64, 576, 576)  # tokens, inputs, outputs: a projection of a small model
ROUNDS = 5
SECONDS = 0.04  # of one format's rounds, where a product takes long


@dataclass(frozen=True)
class ChosenDtype:
    """A format (float32, bfloat16 or float16) and, in words, why it is this one."""

    name: str
    reason: str

    @property
    def torch(self) -> torch.dtype:
        dtype = getattr(torch, self.name)
        assert isinstance(dtype, torch.dtype)
        return dtype


def default_device() -> torch.device:
    """Where the lab puts a model: the process's GPU where there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def choose_dtype(wanted: str, device: torch.device | None = None) -> ChosenDtype:
    """`wanted` as it is, or for `auto` bfloat16 where `device` multiplies it faster than float32, else float32."""
    device = device or default_device()
    slow = why_slow("bfloat16" if wanted == "auto" else wanted, device)
    if wanted != "auto":
        return ChosenDtype(wanted, f"asked for, but {slow}" if slow else "asked for")
    if slow:
        return ChosenDtype("float32", slow)
    return ChosenDtype("bfloat16", f"{device.type} multiplies it faster than float32")


def why_slow(dtype: str, device: torch.device) -> str | None:
    """In words, that `device` multiplies `dtype` slower than float32; None where it does not."""
    if dtype == "float32":
        return None
    if device.type == "cuda":
        emulated = dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False)
        return f"{torch.cuda.get_device_name(device)} emulates {dtype}" if emulated else None
    ratio = times_float32(dtype)
    return f"a product in {dtype} takes {ratio:.1f} times float32's here" if ratio >= 1 else None


@cache
def times_float32(dtype: str) -> float:
    """Seconds of a product on this CPU in `dtype` over those in float32, each the best of a few: some 20 to 100 ms."""
    return _seconds(getattr(torch, dtype)) / _seconds(torch.float32)


@torch.no_grad()
def _seconds(dtype: torch.dtype) -> float:
    tokens, n, m = SHAPE
    x, W = torch.ones(tokens, n, dtype=dtype), torch.ones(m, n, dtype=dtype)
    torch.nn.functional.linear(x, W)  # the first call compiles its kernel
    best, began = float("inf"), time.perf_counter()
    for _ in range(ROUNDS):
        start = time.perf_counter()
        torch.nn.functional.linear(x, W)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > SECONDS:
            break
    return best
