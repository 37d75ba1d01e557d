"""Algebra on a product of thin factors, M = B A, that never forms M.

Shape legend
    A   (R, n), B (m, R)      M   (m, n)      q   min(m, n, R)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def thin_svd(A_Rn: Tensor, B_mR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U `(m, q)`, S `(q,)`, Vh `(q, n)` of M, in float64. With B = Q_b R_b and A^T = Q_a R_a it's that of R_b R_a^T."""
    Q_b, R_b = torch.linalg.qr(B_mR.double())
    Q_a, R_a = torch.linalg.qr(A_Rn.double().T)
    U, S, Vh = torch.linalg.svd(R_b @ R_a.T, full_matrices=False)
    return Q_b @ U, S, Vh @ Q_a.T


def split_svd(U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors A `(rank, n)` and B `(m, rank)` of the nearest matrix of that rank, the singular values shared evenly."""
    root = S[:rank].sqrt()
    return root[:, None] * Vh[:rank], U[:, :rank] * root


def truncate_factors(A_Rn: Tensor, B_mR: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors of the nearest matrix of that rank, in Frobenius norm (Eckart-Young), and its relative error."""
    U, S, Vh = thin_svd(A_Rn, B_mR)
    A, B = split_svd(U, S, Vh, rank)
    energy = S.square().sum()
    error = float((S[rank:].square().sum() / energy).sqrt()) if energy != 0 else 0.0  # NaN stays NaN
    return A.to(A_Rn.dtype), B.to(B_mR.dtype), error


def padded(A_Rn: Tensor, B_mR: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same product at a larger rank: zeros below A and right of B."""
    missing = rank - len(A_Rn)
    return pad(A_Rn, (0, 0, 0, missing)), pad(B_mR, (0, missing))


def relative_difference(A: Tensor, B: Tensor, A_other: Tensor, B_other: Tensor) -> float:
    """Frobenius norm of B A - B' A' over that of B A (over 1 if B A is zero)."""
    difference = thin_norm(torch.cat([A.double(), A_other.double()]), torch.cat([B.double(), -B_other.double()], dim=1))
    whole = thin_norm(A.double(), B.double())
    return difference / whole if whole > 0 else difference


def thin_norm(A_Rn: Tensor, B_mR: Tensor) -> float:
    """Frobenius norm of B A."""
    return float((torch.linalg.qr(B_mR).R @ torch.linalg.qr(A_Rn.T).R.T).norm())
