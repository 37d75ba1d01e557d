"""What calibration observes of a weight: Taylor scores and gradient sketches, from (x, g) pairs of backward passes.

Shape legend
    T   tokens of a batch          m, n   rows and columns of W
    x   (T, n) inputs              g      (T, m) gradient of the loss by the layer's output
    G   (m, n) = sum_t g_t x_t^T   the batch gradient dL/dW
    s   sketch width               Omega  (n, s), Psi (2s+1, m): seeded Gaussian projections

The base weight never requires grad and G is never kept: Taylor scores form it a band of rows at a time, the sketch
not at all. What stays in memory is O(m + n).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from localora.placement.partition import Partition
from localora.placement.threads import one_thread

ROW_BAND = 1024  # rows of G formed at a time


class TaylorScores:
    """Row and column sums of I = |W * G|, summed over batches (G is each batch's own gradient).

    With `within`, rows are scored over that block's columns and columns over its rows, and the block's share of the
    total importance is measured. It is a first-order Taylor score: removing W_ij changes the loss by about W_ij G_ij.
    """

    def __init__(self, m: int, n: int, within: Partition | None = None) -> None:
        self.rows = torch.zeros(m, dtype=torch.float64)
        self.cols = torch.zeros(n, dtype=torch.float64)
        self.total = torch.zeros((), dtype=torch.float64)
        self.inside = torch.zeros((), dtype=torch.float64)
        self.batches = 0
        self._row_mask = torch.ones(m) if within is None else (within.row_labels >= 0).float()
        self._col_mask = torch.ones(n) if within is None else (within.col_labels >= 0).float()

    def observe(self, x_tn: Tensor, g_tm: Tensor, W_mn: Tensor) -> None:
        """Add one batch. x `(T, n)`, g `(T, m)`, W `(m, n)`; computed in float32 or wider."""
        dtype = torch.promote_types(x_tn.dtype, torch.float32)
        x, g = x_tn.to(dtype), g_tm.to(dtype)
        row_mask, col_mask = self._row_mask.to(x), self._col_mask.to(x)
        for band in range(0, g.shape[1], ROW_BAND):
            rows = slice(band, band + ROW_BAND)
            importance = (g[:, rows].T @ x).mul_(W_mn[rows].to(dtype)).abs_()
            row_sums = importance @ col_mask
            self.rows[rows] += row_sums.cpu()
            self.cols += (row_mask[rows] @ importance).cpu()
            self.total += importance.sum().cpu()
            self.inside += (row_mask[rows] @ row_sums).cpu()
        self.batches += 1

    @property
    def inside_share(self) -> float:
        """Share of the importance that lies in the block `within`; 0 where there is no importance at all."""
        return float(self.inside / self.total) if self.total > 0 else 0.0

    def tensors(self) -> list[Tensor]:
        """What is summed over the processes of a distributed run."""
        return [self.rows, self.cols, self.total, self.inside]


class GradientSketch:
    """Y = G Omega `(m, s)` and Z = Psi G `(2s+1, n)`, with G summed over batches and never formed.

    :meth:`factors` turns them into a low-rank G ~ left @ right (Tropp et al., Practical sketching algorithms for
    low-rank matrix approximation, SIAM J. Matrix Anal. Appl. 2017, https://doi.org/10.1137/17M1111590): left = orth(Y)
    and right = pinv(Psi left) Z. It is exact when the rank of G is at most s.
    """

    def __init__(self, m: int, n: int, width: int, seed: int) -> None:
        self.width = min(width, m, n)
        self.seed = seed
        self.m, self.n = m, n
        self.Y = torch.zeros(m, self.width)
        self.Z = torch.zeros(2 * self.width + 1, n)
        self.batches = 0

    def observe(self, x_tn: Tensor, g_tm: Tensor, W_mn: Tensor | None = None) -> None:
        """Add one batch. x `(T, n)`, g `(T, m)`; computed in float32 or wider. W is not needed."""
        dtype = torch.promote_types(x_tn.dtype, torch.float32)
        x, g = x_tn.to(dtype), g_tm.to(dtype)
        self.Y = self.Y + (g.T @ (x @ self._omega().to(x))).cpu()
        self.Z = self.Z + ((self._psi().to(g) @ g.T) @ x).cpu()
        self.batches += 1

    @one_thread()
    def factors(self) -> tuple[Tensor, Tensor]:
        """left `(m, s)` with orthonormal columns and right `(s, n)`, float64 on the CPU."""
        left, _ = torch.linalg.qr(self.Y.double())
        # Psi left has full rank, so its QR will do; torch's lstsq takes all n right-hand sides along, 30 times slower.
        Q, R = torch.linalg.qr(self._psi() @ left)
        right = torch.linalg.solve_triangular(R, Q.T @ self.Z.double(), upper=True)
        return left, right

    def tensors(self) -> list[Tensor]:
        """What is summed over the processes of a distributed run."""
        return [self.Y, self.Z]

    def _omega(self) -> Tensor:
        return _gaussian(self.n, self.width, 2 * self.seed)

    def _psi(self) -> Tensor:
        return _gaussian(2 * self.width + 1, self.m, 2 * self.seed + 1)


@lru_cache(maxsize=16)  # layers of equal shape share their projections; a model has few shapes
def _gaussian(rows: int, cols: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator, dtype=torch.float64, device="cpu") / math.sqrt(cols)
