"""The best plain LoRA of a lower rank, by SVD of the thin factors.

Shape legend
    A   (R, n), B (m, R): dense factors, dW = B A       k   the rank kept
"""

from __future__ import annotations

from torch import Tensor

from localora.placement.thin import split_svd, thin_svd


def truncate_factors(A_Rn: Tensor, B_mR: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors of the rank-k matrix nearest to B A in Frobenius norm (Eckart-Young), and the relative error of that."""
    U, S, Vh = thin_svd(A_Rn, B_mR)
    A, B = split_svd(U, S, Vh, rank)
    energy = S.square().sum()
    error = float((S[rank:].square().sum() / energy).sqrt()) if energy != 0 else 0.0  # NaN stays NaN
    return A.to(A_Rn.dtype), B.to(B_mR.dtype), error
