"""The leading singular directions of a dense matrix: all of them where one side is short, else by ARPACK.

Shape legend
    M   (m, n) dense      k   directions asked for      N   the shorter side
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor

EXACT_SIDE = 1024
TOLERANCE = 1e-3  # of ARPACK: 128 directions of a random 4096 x 4096 take 4 s on one core
ROUNDING = 100  # machine epsilons of the largest, under which a singular value is rounding


def leading_svd(M_mn: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """U `(m, k')`, s `(k',)`, V `(n, k')` in float64: the k' <= k leading singular triplets, without zero ones."""
    N, scale = min(M_mn.shape), M_mn.abs().max()
    if N <= EXACT_SIDE or k >= N or scale == 0:
        U, s, Vt = torch.linalg.svd(M_mn.double(), full_matrices=False)
    else:
        start = np.ones(N, dtype=M_mn.numpy().dtype)  # not of the caller's seed
        found = svds((M_mn / scale).numpy(), k=k, tol=TOLERANCE, v0=start)  # squares of tiny entries would underflow
        U, s, Vt = (torch.from_numpy(part.copy()).double() for part in found)
        order = s.argsort(descending=True)
        U, s, Vt = U[:, order], s[order] * scale, Vt[order]
    k = min(k, int((s > ROUNDING * torch.finfo(M_mn.dtype).eps * s[0]).sum()))
    return U[:, :k], s[:k], Vt[:k].T


def leading_energy(M_mn: Tensor, k: int) -> float:
    """Sum of the k largest squared singular values."""
    if min(M_mn.shape) <= EXACT_SIDE:
        return float(torch.linalg.eigvalsh(gram(M_mn))[-k:].clamp(min=0).sum())
    return float(leading_svd(M_mn, k)[1].square().sum())


def all_singular_values(M_mn: Tensor) -> Tensor:
    """All N singular values in float64, descending; beyond EXACT_SIDE those under 1e-7 of the largest are rounding."""
    if min(M_mn.shape) <= EXACT_SIDE:
        return torch.linalg.svdvals(M_mn.double())
    return torch.linalg.eigvalsh(gram(M_mn)).clamp(min=0).sqrt().flip(0)


def gram(M_mn: Tensor) -> Tensor:
    """M M^T or M^T M, whichever is smaller, in float64; summed over slices, so that M is never copied whole."""
    if M_mn.shape[0] > M_mn.shape[1]:
        M_mn = M_mn.T
    total = torch.zeros(M_mn.shape[0], M_mn.shape[0], dtype=torch.float64)
    for piece in M_mn.split(2048, dim=1):
        piece = piece.double()
        total += piece @ piece.T
    return total
