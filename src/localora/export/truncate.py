"""The best plain LoRA of a lower rank, by SVD of the thin factors.

Shape legend
    A   (R, n), B (m, R): dense factors, dW = B A       k   the rank kept
"""

from __future__ import annotations

import torch
from torch import Tensor


def truncate_factors(A_Rn: Tensor, B_mR: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors of the rank-k matrix nearest to B A in Frobenius norm (Eckart-Young), and the relative error of that.

    With B = Q_b R_b and A^T = Q_a R_a, the SVD of B A is that of the small R_b R_a^T; no m x n matrix is formed.
    """
    Q_b, R_b = torch.linalg.qr(B_mR.double())
    Q_a, R_a = torch.linalg.qr(A_Rn.double().T)
    U, S, Vh = torch.linalg.svd(R_b @ R_a.T, full_matrices=False)
    root = S[:rank].sqrt()
    energy = S.square().sum()
    error = float((S[rank:].square().sum() / energy).sqrt()) if energy > 0 else 0.0
    return (
        (root[:, None] * (Vh[:rank] @ Q_a.T)).to(A_Rn.dtype),
        ((Q_b @ U[:, :rank]) * root).to(B_mR.dtype),
        error,
    )
