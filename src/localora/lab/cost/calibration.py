"""How much memory calibration takes beyond the passes themselves, from shapes alone.

Shape legend
    m, n   rows and columns of W      T   tokens it sees in a batch; an expert n, unit vectors that stand for them
    s      sketch width               b   rows of a band of G

The terms are those of taylor.py and sketch.py in placement/. What stays from batch to batch is kept on the CPU for
every layer; what lives while one layer is observed exists once, on the model's device, since backward visits one layer
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from localora.placement.taylor import band_rows

F32, F64 = 4, 8
Observed = tuple[int, int, int]  # m, n, T of a layer


class CalibrationBytes(NamedTuple):
    """`kept` of all layers together; `working` of the one layer that needs most."""

    kept: int
    working: int


def taylor_bytes(layers: Iterable[Observed], dtype: torch.dtype, device_type: str = "cuda") -> CalibrationBytes:
    """G-LoRA: scores and masks of m rows and n columns; one band of |W * G| at a time.

    `dtype` is that of weights and activations; a CPU takes smaller bands than an accelerator.
    """
    layers = list(layers)
    kept = sum((F64 + F32) * (m + n) + 2 * F64 for m, n, _ in layers)
    as_it_is = dtype == torch.bfloat16 or dtype.itemsize >= F32
    working = (_copies(*layer, as_it_is) + _band(*layer[:2], dtype, device_type) for layer in layers)
    return CalibrationBytes(kept, max(working, default=0))


def sketch_bytes(layers: Iterable[Observed], width: int, dtype: torch.dtype) -> CalibrationBytes:
    """CPS-LoRA and hybrid: Y `(m, s)` and Z `(2s+1, n)` of each layer, and the projections that equal shapes share."""
    widths = [(layer, min(width, *layer[:2])) for layer in layers]
    kept = F32 * sum(s * m + (2 * s + 1) * n for (m, n, _), s in widths)
    projections = {(n, s) for (_, n, _), s in widths} | {(2 * s + 1, m) for (m, _, _), s in widths}
    kept += F64 * sum(rows * cols for rows, cols in projections)
    working = (
        _copies(*layer, dtype.itemsize >= F32) + F32 * max(_left(*layer, s), _right(*layer, s)) for layer, s in widths
    )
    return CalibrationBytes(kept, max(working, default=0))


def _copies(m: int, n: int, tokens: int, as_it_is: bool) -> int:
    """Float32 copies of x and g, where they are not taken as they are."""
    return 0 if as_it_is else F32 * tokens * (m + n)


def _band(m: int, n: int, dtype: torch.dtype, device_type: str) -> int:
    """A band of |W * G|, and a float32 band of W where W is none."""
    return F32 * min(band_rows(n, device_type), m) * n * (1 if dtype.itemsize >= F32 else 2)


def _left(m: int, n: int, tokens: int, s: int) -> int:
    """x Omega beside Omega, then beside this batch's Y and the new sum."""
    return tokens * s + max(n * s, 2 * m * s)


def _right(m: int, n: int, tokens: int, s: int) -> int:
    """Psi g^T beside Psi, then beside this batch's Z and the new sum."""
    return (2 * s + 1) * (tokens + max(m, 2 * n))


PLANNER_BYTES: dict[str, Callable[[Iterable[Observed], Any, torch.dtype], CalibrationBytes]] = {
    "taylor": lambda layers, _, dtype: taylor_bytes(layers, dtype),
    "coclustering": lambda layers, config, dtype: sketch_bytes(layers, config.sketch, dtype),
}
