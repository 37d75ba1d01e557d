"""How many directions a matrix really uses, from its singular values s `(N,)`."""

from __future__ import annotations

import torch
from torch import Tensor


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
