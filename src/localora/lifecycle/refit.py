"""Carrying an adapter over to a new partition: what stays is kept, what moves is fitted anew by least squares.

Shape legend
    A   (r, n), B (m, r): factors with a column for every column of W and a row for every row, zeros where uncovered
    K   clusters        R_k, C_k   rows and columns of cluster k, before; R'_k, C'_k after

The old update is dW[i, j] = B[i] . A[:, j] where the labels of i and j agree. After the move, a column j that went
from cluster k to l should still produce what it did on the rows that went with it, and nothing on the others:

    A'[:, j] = argmin_a  || B'[R'_l] a - dW[R'_l, j] ||        and rows likewise, with A' in the place of B'.

Rows and columns that did not change their cluster keep their factors bit for bit.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from localora.placement.cocluster_steps import assign
from localora.placement.partition import Partition

ROUNDS = 3  # columns, then rows; each round only lowers the misfit, and it settles within a few


def match_clusters(new: Partition, old: Partition) -> Partition:
    """`new` with its clusters renumbered so that as many rows and columns as possible keep their label.

    Numbering carries no meaning, so this changes no update.
    """
    overlap = _overlap(new.row_labels, old.row_labels, new.clusters) + _overlap(
        new.col_labels, old.col_labels, new.clusters
    )
    renumber = assign(overlap.T.double(), 1, 1)
    lookup = torch.cat([renumber, torch.tensor([-1])])  # index -1 (uncovered) stays -1
    return Partition.from_labels(lookup[new.row_labels.long()], lookup[new.col_labels.long()], new.clusters)


def unpack(packed: Tensor, labels: Tensor, dim: int) -> Tensor:
    """A packed factor with zeros put in for the uncovered columns (`dim=1`) or rows (`dim=0`)."""
    shape = list(packed.shape)
    shape[dim] = labels.numel()
    return packed.new_zeros(shape).index_copy(dim, (labels >= 0).nonzero().flatten(), packed)


def pack(full: Tensor, labels: Tensor, dim: int) -> Tensor:
    """The inverse of :func:`unpack`: the covered columns or rows only."""
    return full.index_select(dim, (labels >= 0).nonzero().flatten())


def start_new_columns(A_rn: Tensor, old: Partition, new: Partition) -> Tensor:
    """A full A whose newly covered columns hold what LoRA's A starts from; they are no part of the old update.

    :func:`refit` takes away what the rows of the block see of it. Were they zero, a block none of whose rows and
    columns was covered before would have A = B = 0, where both gradients vanish: it could never learn. The draw is
    seeded by the labels, so that every process and every resumed run makes the same one.
    """
    fresh = ((old.col_labels < 0) & (new.col_labels >= 0)).nonzero().flatten()
    generator = torch.Generator().manual_seed(zlib.crc32(new.row_bytes + new.col_bytes))
    start = torch.rand(A_rn.shape[0], fresh.numel(), generator=generator, device="cpu")
    bound = 1 / math.sqrt(max(new.covered_cols, 1))
    return A_rn.index_copy(1, fresh.to(A_rn.device), ((2 * start - 1) * bound).to(A_rn))


def refit(A_rn: Tensor, B_mr: Tensor, old: Partition, new: Partition) -> tuple[Tensor, Tensor]:
    """Full factors `(r, n)` and `(m, r)` for the partition `new` that keep the update of `old` as far as it can be.

    Both computed in float64. The least-squares step is taken from the old values, so directions that the other
    factor does not see (all of them when B is still zero) keep what they had.
    """
    device = A_rn.device
    rows_old, cols_old = old.row_labels.to(device), old.col_labels.to(device)
    rows_new, cols_new = new.row_labels.to(device), new.col_labels.to(device)
    columns = _Side(A_rn.double().T.contiguous(), cols_old, cols_new)
    rows = _Side(B_mr.double(), rows_old, rows_new)
    for _ in range(ROUNDS):
        for side, other in ((columns, rows), (rows, columns)):
            for cluster in range(new.clusters):
                side.fit(other, cluster)
    A, B = columns.factor.T, rows.factor
    A[:, cols_new < 0] = 0
    B[rows_new < 0] = 0
    return A.to(A_rn.dtype).contiguous(), B.to(B_mr.dtype)


class _Side:
    """The columns, or the rows, of the update: one row of `factor` `(N, r)` for each, and its labels `(N,)`."""

    def __init__(self, factor: Tensor, old: Tensor, new: Tensor) -> None:
        self.factor, self.factor_old, self.old = factor.clone(), factor, old
        self.moved = {int(k): ((old != new) & (new == k)).nonzero().flatten() for k in new.unique()}
        self.members = {int(k): (new == k).nonzero().flatten() for k in new.unique()}

    def fit(self, other: _Side, cluster: int) -> None:
        """Fit what came to `cluster` so that, with the cluster's elements of the other side, it is nearest to old dW.

        With the other side's factor = Q R, the solution needs dW Q only, which is a sum of thin products over the old
        clusters: no matrix of rows x columns is formed.
        """
        points, partners = self.moved.get(cluster, ()), other.members.get(cluster, ())
        if not len(points) or not len(partners):
            return
        Q, R = torch.linalg.qr(other.factor[partners])
        misfit = self.factor[points] @ R.T
        came_from, partners_from = self.old[points], other.old[partners]
        for source in came_from.unique().tolist():
            if source >= 0:
                came, stayed = came_from == source, partners_from == source
                misfit[came] -= self.factor_old[points[came]] @ (other.factor_old[partners[stayed]].T @ Q[stayed])
        self.factor[points] -= misfit @ torch.linalg.pinv(R).T


def _overlap(new: Tensor, old: Tensor, clusters: int) -> Tensor:
    both = (new >= 0) & (old >= 0)
    return torch.bincount(new[both].long() * clusters + old[both].long(), minlength=clusters**2).view(clusters, -1)
