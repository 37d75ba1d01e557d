"""The CPS-LoRA planner: K co-clusters of rows and columns whose rank-r terms capture the most of a matrix.

Shape legend
    m, n  rows and columns of M             K  clusters
    q     directions M is given in          r  rank of one cluster's term
    U (m, q), s (q,), V (n, q)   thin SVD, M = U diag(s) V^T, scaled to ||M||_F = 1
    X = U diag(s)                so that M[i, j] = X[i] . V[j]

    captured energy = sum_k ||best rank-r approximation of M[R_k, C_k]||_F^2 / ||M||_F^2        (the objective)

M is a gradient sketch or an update B A and stays in factors: all work and memory is linear in m + n, since the q x q
Gram matrices of the clusters' rows and columns say all about a block (captured.py). Everything is float64 on the CPU,
wherever the factors lie, so that a seed gives the same labels on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from localora.placement.assignment import Array, assign
from localora.placement.budget import LocalShape
from localora.placement.captured import (
    captured,
    check_rank,
    check_shape,
    grams,
    leading_maps,
    subspace_correlation,
    unit_svd,
)
from localora.placement.partition import MAX_CLUSTERS, Partition, PlacementError
from localora.placement.random import contiguous_partition
from localora.placement.spectral_start import spectral_start
from localora.placement.threads import one_thread

RACE_ROUNDS = 3  # of each start, before the best goes on
MAX_ROUNDS = 30
TOLERANCE = 2e-4  # relative gain of captured energy that is worth another round, or leaving `start`
LAGGING = 0.95  # a new start that captures less than this share of what `start` does after the race is given up
START_POWERS = (1.0, 0.0)  # of the singular values in the two spectral starts

Bounds = tuple[int, int]
Labels = tuple[Tensor, Tensor]  # of rows (m,) and columns (n,)


@dataclass(frozen=True)
class CoclusteringResult:
    """A planned partition and how well it fits.

    Attributes:
        partition: every row and column labelled 0..K-1.
        captured_energy: see :func:`localora.placement.captured.captured_energy`.
        subspace_correlation: see :func:`localora.placement.captured.subspace_correlation`.
        start_energy: captured energy of `start`, if there was one.
    """

    partition: Partition
    captured_energy: float
    subspace_correlation: float
    start_energy: float | None = None


@dataclass(frozen=True)
class _Run:
    """Labels of rows and columns after an alternation, with the captured energy at every half round."""

    labels: Labels
    energies: tuple[float, ...]

    def energy(self) -> float:
        return self.energies[-1]


@one_thread()
def plan_coclusters(
    left_mq: Tensor,
    right_qn: Tensor,
    *,
    clusters: int,
    rank: int,
    balance: float,
    seed: int = 0,
    start: Partition | None = None,
) -> CoclusteringResult:
    """Partition the rows and columns of M = left_mq @ right_qn so that rank-r terms in the clusters capture most.

    Alternates: each column joins the cluster whose left subspace U_k explains it best, argmax_k ||U_k^T M[R_k, j]||^2,
    rows likewise, until the captured energy stops rising. It never falls, as each step is the best for the other side's
    subspaces. Three starts race a few rounds and the best goes on: two spectral ones, and strong rows with strong
    columns. `start` competes with their winner.

    Args:
        left_mq: `(m, q)`; right_qn: `(q, n)`; any float dtype and device.
        clusters: K; rank: r of one cluster's term.
        balance: from 0, free sizes (clusters may be empty), to 1, equal sizes. The size of a cluster lies in
            floor(balance m / K) .. ceil(m / K (1 + (1 - balance) (K - 1))), and likewise in columns.
        seed: of the sample, the starts and nothing else.
        start: a partition to improve, such as the one in use. It is kept unless another captures more by a relative
            2e-4, and the result is numbered to agree with it. Without it clusters are numbered by their first row.

    Returns:
        The partition. An all-zero M says nothing: the result is `start`, or contiguous clusters of equal size; its
        captured energy and subspace correlation are 0.

    Raises:
        PlacementError: factors that do not fit, are empty or not finite, more clusters than rows or columns,
            rank < 1, balance outside 0..1, or a `start` for another matrix or other clusters.
    """
    check_rank(rank)
    U, s, V = unit_svd(left_mq, right_qn)
    m, n = len(U), len(V)
    most = min(m, n, MAX_CLUSTERS)
    if not 1 <= clusters <= most:
        raise PlacementError(f"a {m} x {n} matrix can have 1..{most} clusters, got {clusters}")
    if not 0 <= balance <= 1:
        raise PlacementError(f"balance must lie in 0 (free sizes) .. 1 (equal sizes), got {balance}")
    if start is not None:
        _check_start(start, clusters, m, n)
    bounds = size_bounds(m, clusters, balance), size_bounds(n, clusters, balance)
    if len(s) == 0:
        undecided = start or contiguous_partition(m, n, LocalShape(clusters, rank, m, n))
        return CoclusteringResult(undecided, 0.0, 0.0, None if start is None else 0.0)

    def alternate(labels: Labels, directions: int, rounds: int = MAX_ROUNDS) -> _Run:
        X_few, V_few = U[:, :directions] * s[:directions], V[:, :directions]
        return _alternate(X_few, V_few, labels, clusters, rank, bounds, rounds)

    # K rank-r terms span K r directions at most, so the leading ones hold the clusters and the rest mostly noise:
    # search there, then polish on all of M.
    q, few = len(s), min(len(s), clusters * rank)
    generator = torch.Generator().manual_seed(seed)
    starts = [spectral_start(U[:, :few], s[:few], V[:, :few], clusters, p, generator) for p in START_POWERS]
    starts.append((_by_energy(U * s, clusters, bounds[0]), _by_energy(V * s, clusters, bounds[1])))
    best = max((alternate(labels, few, RACE_ROUNDS) for labels in starts), key=_Run.energy)
    warm = alternate((start.row_labels.long(), start.col_labels.long()), q) if start is not None else None
    if warm is None or best.energy() > LAGGING * warm.energy():
        for directions in (few, q) if few < q else (q,):
            best = alternate(best.labels, directions)
    if start is None or warm is None:
        rows, cols = number_by_first_mention(*best.labels, clusters)
    else:
        best = best if best.energy() > warm.energy() * (1 + TOLERANCE) else warm
        rows, cols = number_like(start, *best.labels)
    partition = Partition.from_labels(rows, cols, clusters)
    return CoclusteringResult(
        partition,
        captured(U, s, V, partition, rank),
        subspace_correlation(U, s, V, partition, rank),
        None if start is None else captured(U, s, V, start, rank),
    )


def size_bounds(size: int, clusters: int, balance: float) -> Bounds:
    """The smallest and largest cluster of `size` rows or columns that `balance` allows."""
    low = math.floor(balance * size / clusters)
    high = math.ceil(size / clusters * (1 + (1 - balance) * (clusters - 1)))
    return low, min(high, size)


def _alternate(
    X: Tensor, V: Tensor, labels: Labels, clusters: int, rank: int, bounds: tuple[Bounds, Bounds], rounds: int
) -> _Run:
    """Alternate from labels of rows and columns (-1 = none yet) until a round gains too little."""
    rows, cols = labels
    row_bounds, col_bounds = bounds
    A, H = grams(X, rows, clusters), grams(V, cols, clusters)
    W, _ = leading_maps(A, H, rank)
    energies: list[float] = []
    row_prices, col_prices = np.zeros(clusters), np.zeros(clusters)
    for count in range(1, rounds + 1):
        old_rows, old_cols = rows, cols
        cols = _reassign(V, W, cols, col_bounds, col_prices)
        H = grams(V, cols, clusters)
        Z, energy = leading_maps(H, A, rank)
        energies.append(energy)
        rows = _reassign(X, Z, rows, row_bounds, row_prices)
        A = grams(X, rows, clusters)
        W, energy = leading_maps(A, H, rank)
        energies.append(energy)
        if torch.equal(rows, old_rows) and torch.equal(cols, old_cols):
            break
        if count > 1 and energies[-1] <= energies[-3] * (1 + TOLERANCE):
            break
    return _Run((rows, cols), tuple(energies))


def _reassign(points_Nq: Tensor, maps_Krq: Tensor, labels: Tensor, bounds: Bounds, prices: Array) -> Tensor:
    """The best labels within bounds; the old ones where nothing is gained, so that ties never move anything."""
    scores = torch.stack([(W @ points_Nq.T).square_().sum(0) for W in maps_Krq])
    new = assign(scores, *bounds, prices)
    sizes = torch.bincount(labels[labels >= 0], minlength=len(maps_Krq))
    if labels.min() < 0 or sizes.min() < bounds[0] or sizes.max() > bounds[1]:
        return new
    gain = scores.gather(0, new[None]) - scores.gather(0, labels[None])
    return new if gain.sum() > 1e-12 * scores.sum() else labels


def _by_energy(points_Nq: Tensor, clusters: int, bounds: Bounds) -> Tensor:
    """The start without structure: the strongest elements in cluster 0, as many as the floor of the others admits.

    Where energy concentrates in a few rows and columns, as in real gradients, joining strong with strong captures
    more than any cut of a graph that is one lump. With free sizes it is one cluster, plain LoRA.
    """
    N, low = len(points_Nq), bounds[0]
    first = N - (clusters - 1) * low
    place = points_Nq.square().sum(1).argsort(descending=True, stable=True).argsort()
    return torch.where(place < first, 0, 1 + (place - first).div(max(low, 1), rounding_mode="floor"))


def number_by_first_mention(rows: Tensor, cols: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Cluster numbers in the order in which the rows, then the columns, first mention them."""
    both = torch.cat([rows, cols])
    first = torch.full((clusters,), len(both)).scatter_reduce(0, both, torch.arange(len(both)), "amin")
    number = first.argsort(stable=True).argsort()
    return number[rows], number[cols]


def number_like(start: Partition, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    """Cluster numbers that leave the most rows and columns with the label they have in `start`.

    A number stands for trained factors: renumbering would look like moving every row and column.
    """
    old, new = torch.cat([start.row_labels, start.col_labels]).long(), torch.cat([rows, cols])
    shared = torch.bincount(old * start.clusters + new, minlength=start.clusters**2)
    number = assign(shared.view(start.clusters, start.clusters).double(), 1, 1)
    return number[rows], number[cols]


def _check_start(start: Partition, clusters: int, m: int, n: int) -> None:
    check_shape(start, m, n)
    if start.clusters != clusters:
        raise PlacementError(f"start has {start.clusters} clusters, the plan is for {clusters}")
    if start.covered_rows < m or start.covered_cols < n:
        raise PlacementError("start leaves rows or columns uncovered; co-clusters cover all of them")
