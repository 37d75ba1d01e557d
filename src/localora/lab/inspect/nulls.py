"""Matrices without clusters that share everything else with dW, so that "there are clusters" can be refuted.

Shape legend
    m, n  rows and columns      q  leading directions      U (m, q), s (q,), V (n, q)  leading triplets of dW

| null     | keeps                                                      | what beating it shows                   |
| rotated  | all singular values; U and V are random                    | energy gathers on some rows and columns |
| matched  | all singular values, and the energy of every row and column| directions gather: clusters             |

A rotated matrix spreads its energy evenly; a few heavy rows are enough to beat it. Only what beats the matched null has
clusters. (Shuffled entries would be no null: their low rank is gone too, so nearly every update beats them.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from localora.lab.inspect.matrix import Triplets

MATCH_ROUNDS = 300
MATCHED = 1e-3  # share of the energy on the wrong rows at which a draw counts as matched


def rotated(U: Tensor, s: Tensor, V: Tensor, generator: torch.Generator) -> Triplets:
    """The same singular values between random orthonormal bases (uniform, from the QR of Gaussian matrices)."""
    return _random_basis(U, generator), s, _random_basis(V, generator)


def _random_basis(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(like.shape, generator=generator, dtype=like.dtype)).Q


def matched(U: Tensor, s: Tensor, V: Tensor, generator: torch.Generator) -> Triplets:
    """The same singular values, and every row and column with nearly the energy it has in dW; random else.

    Row i has energy ||U_i diag(s)||^2, column j ||V_j diag(s)||^2, so each basis can be drawn on its own.
    """
    return _matched_basis(U, s, generator), s, _matched_basis(V, s, generator)


def _matched_basis(U_mq: Tensor, s_q: Tensor, generator: torch.Generator) -> Tensor:
    """A random orthonormal basis whose rows, scaled by s, have the norms that U's rows have.

    Starts from the left singular vectors of a random matrix with such rows, in which heavy rows draw the leading
    directions to themselves as they do in dW. Then alternates between the two conditions: scale the rows to their
    norms; go to the nearest orthonormal basis. It ends on the second, so that the singular values are exact.
    """
    norms = (U_mq * s_q).norm(dim=1)
    directions = torch.nn.functional.normalize(torch.randn(U_mq.shape, generator=generator, dtype=U_mq.dtype), dim=1)
    Z = torch.linalg.svd(norms[:, None] * directions, full_matrices=False).U
    for _ in range(MATCH_ROUNDS):
        now = (Z * s_q).norm(dim=1)
        if float((now.square() - norms.square()).abs().sum()) <= MATCHED * float(norms.square().sum()):
            break
        Z = _nearest_orthonormal(Z * (norms / now.clamp(min=torch.finfo(Z.dtype).tiny))[:, None])
    return Z


def energy_mismatch(U: Tensor, drawn_U: Tensor, s: Tensor) -> float:
    """The share of the energy that lies on other rows (or columns) in a drawn basis than in dW."""
    wanted, drawn = ((basis * s).square().sum(1) for basis in (U, drawn_U))
    return float((drawn - wanted).abs().sum() / (2 * wanted.sum()))


def _nearest_orthonormal(Z_mq: Tensor) -> Tensor:
    """The polar factor Z (Z^T Z)^-1/2."""
    Q, R = torch.linalg.qr(Z_mq)
    u, _, vt = torch.linalg.svd(R)
    return Q @ (u @ vt)
