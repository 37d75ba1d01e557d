"""The leading singular directions of a dense matrix: exactly when one side is short, else by block Krylov iteration.

Shape legend
    M   (m, n) dense      k   directions asked for      w   width of a Krylov block      N   the shorter side

Up to EXACT_SIDE the eigenvectors of the N x N Gram matrix give the subspace. Above it, the span of
Omega, (M^T M) Omega, (M^T M)^2 Omega, ... with a thin random Omega does: for the same products with M it is far closer
than power iteration, most of all on flat spectra (Musco and Musco, 2015, https://arxiv.org/abs/1504.05477).
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_SIDE = 1024
OVERSAMPLING = 8
KRYLOV_DEPTH = 6
ROUNDING = 100  # machine epsilons of the largest, under which a singular value is rounding


def leading_svd(M_mn: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """U `(m, k')`, s `(k',)`, V `(n, k')` in float64: the k' <= k leading singular triplets, without zero ones."""
    m, n = M_mn.shape
    if m > n:
        V, s, U = leading_svd(M_mn.T, k)
        return U, s, V
    k = min(k, m)
    Q_mw = _gram_subspace(M_mn, k) if m <= EXACT_SIDE else _krylov_subspace(M_mn, k)
    # Rayleigh-Ritz: orthonormal triplets, however close to each other or to zero the singular values are
    small = (Q_mw.T.to(M_mn.dtype) @ M_mn).double()
    u, s, vt = torch.linalg.svd(small, full_matrices=False)
    k = min(k, int((s > ROUNDING * torch.finfo(M_mn.dtype).eps * s[0]).sum()))
    return Q_mw.double() @ u[:, :k], s[:k], vt[:k].T


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


def _gram_subspace(M_mn: Tensor, k: int) -> Tensor:
    return torch.linalg.eigh(gram(M_mn)).eigenvectors[:, -k:]


def _krylov_subspace(M_mn: Tensor, k: int) -> Tensor:
    """An orthonormal basis, of the rows' space, that nearly holds the k leading left singular vectors."""
    generator = torch.Generator().manual_seed(0)  # the answer must not depend on the caller's seed
    start = torch.randn(M_mn.shape[0], k + OVERSAMPLING, generator=generator, dtype=M_mn.dtype)
    blocks = [torch.linalg.qr(M_mn @ (M_mn.T @ start)).Q]
    while len(blocks) < KRYLOV_DEPTH and (len(blocks) + 1) * blocks[0].shape[1] < M_mn.shape[0]:
        image = M_mn @ (M_mn.T @ blocks[-1])
        for block in blocks:  # what earlier blocks hold already would crowd out what is new
            image = image - block @ (block.T @ image)
        blocks.append(torch.linalg.qr(image).Q)
    # the last factorisation makes the basis orthonormal even where a block found nothing new
    return torch.linalg.qr(torch.cat(blocks, dim=1)).Q
