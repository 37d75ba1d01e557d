"""Updates whose structure is known: planted clusters, and matrices of the same spectrum without any."""

from __future__ import annotations

import torch
from torch import Tensor


def clustered(m: int, n: int, clusters: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix of `clusters` shuffled blocks of the given rank each, float64, with its row and column labels."""
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.arange(m) * clusters // m)[torch.randperm(m, generator=generator)]
    cols = (torch.arange(n) * clusters // n)[torch.randperm(n, generator=generator)]
    total = torch.zeros(m, n, dtype=torch.float64)
    for k in range(clusters):
        left = torch.randn(m, rank, generator=generator, dtype=torch.float64) * (rows == k)[:, None]
        right = torch.randn(rank, n, generator=generator, dtype=torch.float64) * (cols == k)
        total += left @ right
    return total, rows, cols


def without_clusters(M: Tensor, seed: int = 0) -> Tensor:
    """The singular values of M between random bases."""
    generator = torch.Generator().manual_seed(seed)
    s = torch.linalg.svdvals(M)
    s = s[s > 1e-10 * s[0]]
    U, V = (torch.linalg.qr(torch.randn(size, len(s), generator=generator, dtype=torch.float64)).Q for size in M.shape)
    return U * s @ V.T


def uneven(m: int, n: int, rank: int, spread: float = 0.7, seed: int = 0) -> Tensor:
    """Random low-rank, with rows and columns of log-normal sizes: heavy ones, but no clusters."""
    generator = torch.Generator().manual_seed(seed)
    left, right, rows, cols = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((m, rank), (rank, n), (m, 1), (n,))
    )
    return (spread * rows).exp() * left @ right * (spread * cols).exp()
