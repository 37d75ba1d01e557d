"""Coherence of groups of rows, or of columns: the part of the co-clustering objective that speaks of one side alone.

Shape legend
    N points of a side in q coordinates, P (N, q)      K groups, P_k the points of group k
    r  rank of a cluster's term                        E_k (q, r)  leading eigenvectors of P_k^T P_k

    coherence of a side = sum_k ||P_k E_k||_F^2 = sum_k ||best rank-r approximation of P_k||_F^2        (||P||_F = 1)

The abstract of CPS-LoRA asks for subspaces that are "locally coherent and maximally uncorrelated". What of a row lies
in the rank-r subspace of its own group, whatever the columns, it does not share with the subspaces of others: groups
that are coherent overlap less. Captured energy alone says nothing of that, as it looks at a group's own columns only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localora.placement.captured import grams


class Coherence:
    """One side's share of the objective, `value` = w / 2 of its coherence, for the groups it was last fitted to."""

    def __init__(self, points_Nq: Tensor, labels: Tensor, clusters: int, rank: int, weight: float) -> None:
        self.points_Nq, self.clusters, self.rank, self.weight = points_Nq, clusters, rank, weight
        self.fit(labels)

    def fit(self, labels: Tensor) -> None:
        """Take the subspaces of these groups."""
        eigenvalues, E = torch.linalg.eigh(grams(self.points_Nq, labels, self.clusters))
        self.bases_Kqr = E[..., -self.rank :]
        self.value = self.weight / 2 * float(eigenvalues[:, -self.rank :].sum())

    def scores(self) -> Tensor:
        """`(K, N)`: what each element would add to the value in each group, its subspace as it is."""
        energies = [(self.points_Nq @ E).square_().sum(1) for E in self.bases_Kqr]
        return self.weight / 2 * torch.stack(energies)
