"""An update dW under the microscope: given as thin factors (adapters) or dense (differences of checkpoints).

Shape legend
    m, n  rows and columns of dW      q  width of the factors      k  rank of a term

Both forms answer the same few questions, so that every figure has one formula. Factors never become m x n, except
for :meth:`Factors.dense`. Energies are squared Frobenius norms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localora.lab.inspect.leading import all_singular_values, leading_energy, leading_svd
from localora.placement.thin import thin_norm, thin_svd

Triplets = tuple[Tensor, Tensor, Tensor]
DROPPED = 1e-13  # singular values of factors below this share of the largest are rounding


class Dense:
    """A matrix in memory, float32 or float64; anything else floating is widened to float32."""

    def __init__(self, M_mn: Tensor) -> None:
        M_mn = M_mn.detach()
        self._M = M_mn if M_mn.dtype == torch.float64 else M_mn.float()

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)"""
        return self._M.shape[0], self._M.shape[1]

    def energy(self) -> float:
        """||dW||_F^2"""
        return float(self.row_energy().sum())

    def row_energy(self) -> Tensor:
        """`(m,)` float64"""
        return torch.linalg.vector_norm(self._M, dim=1, dtype=torch.float64).square()

    def col_energy(self) -> Tensor:
        """`(n,)` float64"""
        return torch.linalg.vector_norm(self._M, dim=0, dtype=torch.float64).square()

    def singular_values(self) -> Tensor:
        """All of them, descending, float64; for factors without those that are rounding."""
        return all_singular_values(self._M)

    def leading(self, k: int) -> Triplets:
        """U `(m, k')`, s `(k',)`, V `(n, k')`, float64: the k' <= k leading singular triplets."""
        return leading_svd(self._M, k)

    def top_energy(self, k: int) -> float:
        """What the best rank-k approximation captures: the sum of the k largest squared singular values."""
        return leading_energy(self._M, k) if self._M.numel() else 0.0

    def block(self, rows: Tensor, cols: Tensor) -> Dense:
        """The sub-matrix of the given row and column indices."""
        return Dense(self._M[rows][:, cols])

    def minus(self, left_mk: Tensor, right_kn: Tensor) -> Dense:
        """dW - left @ right"""
        return Dense(torch.addmm(self._M, left_mk.to(self._M.dtype), right_kn.to(self._M.dtype), alpha=-1))

    def dense(self) -> Tensor:
        """`(m, n)`, float32 or float64"""
        return self._M


class Factors:
    """left `(m, q)` @ right `(q, n)`, in float64. Padding is dropped, so that it changes no figure in its last bit.

    Its methods are those of :class:`Dense`.
    """

    def __init__(self, left_mq: Tensor, right_qn: Tensor) -> None:
        used = (left_mq != 0).any(0) & (right_qn != 0).any(1)
        used[0] |= not bool(used.any())  # a zero matrix keeps one direction
        self._left, self._right = left_mq.detach()[:, used].double(), right_qn.detach()[used].double()

    @property
    def shape(self) -> tuple[int, int]:
        return self._left.shape[0], self._right.shape[1]

    def energy(self) -> float:
        return thin_norm(self._right, self._left) ** 2

    def row_energy(self) -> Tensor:
        return (self._left @ torch.linalg.qr(self._right.T).R.T).square().sum(1)

    def col_energy(self) -> Tensor:
        return (torch.linalg.qr(self._left).R @ self._right).square().sum(0)

    def singular_values(self) -> Tensor:
        return self.leading(self._left.shape[1])[1]

    def leading(self, k: int) -> Triplets:
        U, s, Vt = thin_svd(self._right, self._left)
        kept = int((s > DROPPED * s[0]).sum()) if len(s) else 0
        k = min(k, kept)
        return U[:, :k], s[:k], Vt[:k].T

    def top_energy(self, k: int) -> float:
        if not self._left.shape[0] or not self._right.shape[1]:
            return 0.0
        small = torch.linalg.qr(self._left).R @ torch.linalg.qr(self._right.T).R.T
        return float(torch.linalg.svdvals(small)[:k].square().sum())

    def block(self, rows: Tensor, cols: Tensor) -> Factors:
        return Factors(self._left[rows], self._right[:, cols])

    def minus(self, left_mk: Tensor, right_kn: Tensor) -> Factors:
        return Factors(torch.cat([self._left, -left_mk.double()], 1), torch.cat([self._right, right_kn.double()]))

    def dense(self) -> Tensor:
        return self._left.float() @ self._right.float()


Matrix = Dense | Factors


def stable_rank(s_N: Tensor) -> float:
    """||M||_F^2 / ||M||_2^2 = sum s_i^2 / s_1^2: between 1 and the rank, deaf to small singular values. 0 for M = 0."""
    return float((s_N / s_N.max()).square().sum()) if _any(s_N) else 0.0


def effective_rank(s_N: Tensor) -> float:
    """exp(H(p)) with p_i = s_i / sum s and H Shannon's entropy: k when k singular values are equal. 0 for M = 0.

    The definition of O. Roy and M. Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.
    (Others normalise s^2; theirs weighs small singular values more.)
    """
    if not _any(s_N):
        return 0.0
    p = s_N.double() / s_N.double().sum()
    return float(torch.special.entr(p).sum().exp())


def _any(s_N: Tensor) -> bool:
    return s_N.numel() > 0 and bool(s_N.max() > 0)
