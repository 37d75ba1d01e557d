"""The CPS-LoRA planner: K co-clusters of rows and columns whose rank-r terms capture the most of a matrix.

Shape legend
    m, n  rows and columns of M             K  clusters
    q     directions M is given in          r  rank of one cluster's term
    U (m, q), s (q,), V (n, q)   thin SVD, M = U diag(s) V^T, scaled to ||M||_F = 1
    X = U diag(s)                so that M[i, j] = X[i] . V[j]

    captured energy = sum_k ||best rank-r approximation of M[R_k, C_k]||_F^2 / ||M||_F^2
    objective       = (1 - w) captured energy + w coherence        (coherence: see coherence.py; w = 0 leaves it out)

M is a gradient sketch or an update B A and stays in factors: all work and memory is linear in m + n. A block is
M[R_k, C_k] = X[R_k] V[C_k]^T, so the Gram matrices A_k = X[R_k]^T X[R_k] and H_k = V[C_k]^T V[C_k], q x q, say all
about its singular values. Everything is float64 on the CPU, wherever the factors lie, so that a seed gives the
same labels on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from localora.placement.agreement import number_by_first_mention, number_like
from localora.placement.cocluster_steps import Array, assign, grams, spectral_start
from localora.placement.coherence import Coherence
from localora.placement.partition import MAX_CLUSTERS, Partition, PlacementError
from localora.placement.threads import one_thread

RACE_ROUNDS = 3  # of each start, before the best goes on
MAX_ROUNDS = 30
TOLERANCE = 2e-4  # relative gain of captured energy that is worth another round, or leaving `start`
LAGGING = 0.95  # a new start that captures less than this share of what `start` does after the race is given up
TIE_BREAK = 1e-9  # of the largest energy of a cluster: what decides directions that no energy decides
START_POWERS = (1.0, 0.0)  # of the singular values in the two spectral starts
EPS = torch.finfo(torch.float64).eps

Bounds = tuple[int, int]


@dataclass(frozen=True)
class CoclusteringResult:
    """A planned partition and how well it fits.

    Attributes:
        partition: every row and column labelled 0..K-1.
        captured_energy: see :func:`captured_energy`.
        subspace_correlation: see :func:`subspace_correlation`.
        rounds: alternations of the run that won.
        start_energy: captured energy of `start`, if there was one.
    """

    partition: Partition
    captured_energy: float
    subspace_correlation: float
    rounds: int
    start_energy: float | None = None


@dataclass(frozen=True)
class _Run:
    """Labels of rows and columns after an alternation, with the objective at every half round."""

    labels: tuple[Tensor, Tensor]
    energies: tuple[float, ...]
    rounds: int

    def energy(self) -> float:
        return self.energies[-1]

    def then(self, later: _Run) -> _Run:
        """The run `later`, which went on from this one."""
        return _Run(later.labels, later.energies, self.rounds + later.rounds)


@one_thread()
def plan_coclusters(
    left_mq: Tensor,
    right_qn: Tensor,
    *,
    clusters: int,
    rank: int,
    balance: float,
    coherence: float = 0.0,
    seed: int = 0,
    start: Partition | None = None,
) -> CoclusteringResult:
    """Partition the rows and columns of M = left_mq @ right_qn so that rank-r terms in the clusters capture most.

    Alternates: each column joins the cluster whose left subspace U_k explains it best, argmax_k ||U_k^T M[R_k, j]||^2,
    rows likewise, until the objective stops rising. It never falls, as each step is the best for the subspaces of that
    moment: the other side's and, where coherence has a weight, the side's own. Three starts race a few rounds and the
    best goes on: two spectral ones, and strong rows with strong columns. `start` competes with their winner.

    Args:
        left_mq: `(m, q)`; right_qn: `(q, n)`; any float dtype and device.
        clusters: K; rank: r of one cluster's term.
        balance: from 0, free sizes (clusters may be empty), to 1, equal sizes. The size of a cluster lies in
            floor(balance m / K) .. ceil(m / K (1 + (1 - balance) (K - 1))), and likewise in columns.
        coherence: w of the objective, from 0 to below 1.
        seed: of the sample, the starts and nothing else.
        start: a partition to improve, such as the one in use. It is kept unless another captures more by a relative
            2e-4, and the result is numbered to agree with it. Without it clusters are numbered by their first row.

    Returns:
        The partition. An all-zero M says nothing: the result is `start` where that keeps the bounds, else contiguous
        clusters of equal size; its captured energy and subspace correlation are 0.

    Raises:
        PlacementError: factors that do not fit, are empty or not finite, more clusters than rows or columns,
            rank < 1, balance outside 0..1, coherence outside 0..1, or a `start` for another matrix or other clusters.
    """
    _check_rank(rank)
    U, s, V = _thin_svd(left_mq, right_qn)
    m, n = len(U), len(V)
    _check_clusters(clusters, m, n)
    if not 0 <= balance <= 1:
        raise PlacementError(f"balance must lie in 0 (free sizes) .. 1 (equal sizes), got {balance}")
    if not 0 <= coherence < 1:
        raise PlacementError(f"coherence must lie in 0 (captured energy alone) to below 1, got {coherence}")
    if start is not None:
        _check_start(start, clusters, m, n)
    row_bounds, col_bounds = size_bounds(m, clusters, balance), size_bounds(n, clusters, balance)
    if len(s) == 0:
        undecided = _undecided(m, n, clusters, row_bounds, col_bounds, start)
        return CoclusteringResult(undecided, 0.0, 0.0, 0, None if start is None else 0.0)

    def alternate(labels: tuple[Tensor, Tensor], directions: int, rounds: int = MAX_ROUNDS) -> _Run:
        X_few, V_few = U[:, :directions] * s[:directions], V[:, :directions]
        Vs_few = V_few * s[:directions] if coherence else None
        return _alternate(X_few, V_few, *labels, clusters, rank, row_bounds, col_bounds, rounds, coherence, Vs_few)

    # K rank-r terms span K r directions at most, so the leading ones hold the clusters and the rest mostly noise:
    # search there, then polish on all of M.
    q, few = len(s), min(len(s), clusters * rank)
    generator = torch.Generator().manual_seed(seed)
    starts = [spectral_start(U[:, :few], s[:few], V[:, :few], clusters, p, generator) for p in START_POWERS]
    starts.append((_by_energy(U * s, clusters, row_bounds), _by_energy(V * s, clusters, col_bounds)))
    best = max((alternate(labels, few, RACE_ROUNDS) for labels in starts), key=_Run.energy)
    warm = alternate((start.row_labels.long(), start.col_labels.long()), q) if start is not None else None
    if warm is None or best.energy() > LAGGING * warm.energy():
        for directions in (few, q) if few < q else (q,):
            best = best.then(alternate(best.labels, directions))
    if start is None or warm is None:
        rows, cols = number_by_first_mention(*best.labels, clusters)
    else:
        best = best if best.energy() > warm.energy() * (1 + TOLERANCE) else warm
        rows, cols = number_like(start, *best.labels)
    partition = Partition.from_labels(rows, cols, clusters)
    correlation = _correlation(U, s, V, partition, rank)
    start_energy = None if start is None else _captured(U, s, V, start, rank)
    return CoclusteringResult(partition, _captured(U, s, V, partition, rank), correlation, best.rounds, start_energy)


@one_thread()
def captured_energy(left_mq: Tensor, right_qn: Tensor, partition: Partition, rank: int) -> float:
    """sum_k ||best rank-r approximation of M[R_k, C_k]||_F^2 / ||M||_F^2, in 0..1; 0 for an all-zero M.

    Raises:
        PlacementError: as :func:`plan_coclusters`, or the partition labels another matrix.
    """
    _check_rank(rank)
    U, s, V = _thin_svd(left_mq, right_qn)
    _check_shape(partition, len(U), len(V))
    return _captured(U, s, V, partition, rank)


@one_thread()
def subspace_correlation(left_mq: Tensor, right_qn: Tensor, partition: Partition, rank: int) -> float:
    """How much the clusters' subspaces overlap: 0 = orthogonal, 1 = one subspace for all.

    With V_k the leading r right singular vectors of the row group M[R_k, :], the mean of ||V_k^T V_l||_F^2 / r over
    pairs k != l (r = the smaller of both ranks); likewise for column groups; the average of both. Empty and all-zero
    groups have no subspace and are left out; with fewer than two others a side counts as 0, so K = 1 gives 0.

    Raises:
        PlacementError: as :func:`captured_energy`.
    """
    _check_rank(rank)
    U, s, V = _thin_svd(left_mq, right_qn)
    _check_shape(partition, len(U), len(V))
    return _correlation(U, s, V, partition, rank)


def size_bounds(size: int, clusters: int, balance: float) -> Bounds:
    """The smallest and largest cluster of `size` rows or columns that `balance` allows."""
    low = math.floor(balance * size / clusters)
    high = math.ceil(size / clusters * (1 + (1 - balance) * (clusters - 1)))
    return low, min(high, size)


def _alternate(
    X: Tensor,
    V: Tensor,
    rows: Tensor,
    cols: Tensor,
    clusters: int,
    rank: int,
    row_bounds: Bounds,
    col_bounds: Bounds,
    rounds: int,
    weight: float = 0.0,
    Vs: Tensor | None = None,
) -> _Run:
    """Alternate from labels `rows`, `cols` (-1 = none yet) until a round gains too little.

    Vs = V diag(s), `(n, q)`: the columns in U's coordinates, as X has the rows in V's; given if coherence has a weight.
    """
    A, H = grams(X, rows, clusters), grams(V, cols, clusters)
    W, _ = _leading_maps(A, H, rank)
    of_rows = Coherence(X, rows, clusters, rank, weight) if Vs is not None else None
    of_cols = Coherence(Vs, cols, clusters, rank, weight) if Vs is not None else None
    energies: list[float] = []
    row_prices, col_prices = np.zeros(clusters), np.zeros(clusters)

    def objective(captured: float) -> float:
        if of_rows is None or of_cols is None:
            return captured
        return (1 - weight) * captured + of_rows.value + of_cols.value

    for count in range(1, rounds + 1):
        old_rows, old_cols = rows, cols
        cols = _reassign(V, W, cols, col_bounds, col_prices, of_cols)
        H = grams(V, cols, clusters)
        Z, energy = _leading_maps(H, A, rank)
        energies.append(objective(energy))
        rows = _reassign(X, Z, rows, row_bounds, row_prices, of_rows)
        A = grams(X, rows, clusters)
        W, energy = _leading_maps(A, H, rank)
        energies.append(objective(energy))
        if torch.equal(rows, old_rows) and torch.equal(cols, old_cols):
            break
        if count > 1 and energies[-1] <= energies[-3] * (1 + TOLERANCE):
            break
    return _Run((rows, cols), tuple(energies), count)


def _leading_maps(A: Tensor, H: Tensor, rank: int) -> tuple[Tensor, float]:
    """The map from a column's V[j] to its coordinates in each cluster's left subspace, and the captured energy.

    With A_k = F^T F, X[R_k] = Q F for some orthonormal Q, so M_k M_k^T = Q (F H_k F^T) Q^T: its leading eigenvectors P
    give U_k = Q P and U_k^T M[R_k, j] = P^T F V[j]. Returns W_k = P^T F, `(K, min(r, q), q)`, and the sum of the
    eigenvalues, the squared singular values. With A and H exchanged, the same for rows.

    A block of rank below r leaves directions open. They go to what all columns hold most of (the small multiple of the
    identity, V^T V over all columns): left to rounding, they would be others on every machine.
    """
    F = _square_root(A)
    weight = TIE_BREAK * H.diagonal(dim1=-2, dim2=-1).sum(-1).amax()
    _, P = torch.linalg.eigh(F @ (H + weight * torch.eye(H.shape[-1], dtype=H.dtype)) @ F.mT)
    W = P[..., -rank:].mT @ F
    return W, float(((W @ H) * W).sum())


def _square_root(A: Tensor) -> Tensor:
    """F with F^T F = A, for a batch of positive semidefinite A that may be singular (Cholesky would fail)."""
    eigenvalues, E = torch.linalg.eigh(A)
    F: Tensor = eigenvalues.clamp(min=0).sqrt()[..., None] * E.mT
    return F


def _reassign(
    points_Nq: Tensor,
    maps_Krq: Tensor,
    labels: Tensor,
    bounds: Bounds,
    prices: Array,
    coherence: Coherence | None = None,
) -> Tensor:
    """The best labels within bounds; the old ones where nothing is gained, so that ties never move anything."""
    scores = torch.stack([(W @ points_Nq.T).square_().sum(0) for W in maps_Krq])
    if coherence is not None:
        scores = (1 - coherence.weight) * scores + coherence.scores()
    new = assign(scores, *bounds, prices)
    sizes = torch.bincount(labels[labels >= 0], minlength=len(maps_Krq))
    if not (labels.min() < 0 or sizes.min() < bounds[0] or sizes.max() > bounds[1]):
        gain = scores.gather(0, new[None]) - scores.gather(0, labels[None])
        if gain.sum() <= 1e-12 * scores.sum():
            new = labels
    if coherence is not None:
        coherence.fit(new)
    return new


def _captured(U: Tensor, s: Tensor, V: Tensor, partition: Partition, rank: int) -> float:
    A = grams(U * s, partition.row_labels, partition.clusters)
    H = grams(V, partition.col_labels, partition.clusters)
    return min(1.0, _leading_maps(A, H, rank)[1])


def _correlation(U: Tensor, s: Tensor, V: Tensor, partition: Partition, rank: int) -> float:
    # V is orthonormal, so right singular vectors of X[R_k] V^T are V times those of X[R_k]; columns likewise with U
    by_rows = _mean_overlap(grams(U * s, partition.row_labels, partition.clusters), rank)
    by_cols = _mean_overlap(grams(V * s, partition.col_labels, partition.clusters), rank)
    return (by_rows + by_cols) / 2


def _mean_overlap(grams_Kqq: Tensor, rank: int) -> float:
    """Mean over pairs of ||E_k^T E_l||_F^2 / min(rank_k, rank_l), E_k the leading eigenvectors of Gram matrix k."""
    if grams_Kqq.numel() == 0:  # M = 0
        return 0.0
    eigenvalues, E = torch.linalg.eigh(grams_Kqq)
    eigenvalues, E = eigenvalues[:, -rank:], E[..., -rank:]
    real = eigenvalues > 1e-12 * max(1e-300, float(eigenvalues.max()))  # what lies below is rounding
    ranks = real.sum(1)
    E, ranks = (E * real[:, None])[ranks > 0], ranks[ranks > 0]
    K, r = len(E), E.shape[2]
    if K < 2:
        return 0.0
    directions = E.mT.reshape(K * r, -1)
    overlap = (directions @ directions.T).square().view(K, r, K, r).sum((1, 3))
    overlap = overlap / torch.minimum(ranks[:, None], ranks)
    return float(overlap.fill_diagonal_(0).sum() / (K * (K - 1)))


def _thin_svd(left_mq: Tensor, right_qn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, s, V of M = left @ right with ||s|| = 1 and numerically zero directions dropped; s is empty for M = 0."""
    if left_mq.ndim != 2 or right_qn.ndim != 2 or left_mq.shape[1] != right_qn.shape[0]:
        raise PlacementError(
            f"the factors of M must be (m, q) and (q, n), got {tuple(left_mq.shape)} and {tuple(right_qn.shape)}"
        )
    if left_mq.numel() == 0 or right_qn.numel() == 0:
        raise PlacementError(f"the factors of M are empty: {tuple(left_mq.shape)} and {tuple(right_qn.shape)}")
    scaled = []
    for name, factor in (("left", left_mq), ("right", right_qn)):
        factor = factor.detach().to("cpu", torch.float64)
        if not bool(factor.isfinite().all()):
            raise PlacementError(
                f"the {name} factor of M holds NaN or infinity, so the gradient or update it stands for has diverged: "
                "lower the learning rate, or check the calibration batches and their loss"
            )
        # entries near the ends of the float64 range would overflow or vanish when squared
        scaled.append(factor / factor.abs().max().clamp(min=torch.finfo(torch.float64).tiny))
    left_Q, left_R = torch.linalg.qr(scaled[0])
    right_Q, right_R = torch.linalg.qr(scaled[1].T)
    u, s, vt = torch.linalg.svd(left_R @ right_R.T, full_matrices=False)
    rounding = EPS * max(len(left_mq), right_qn.shape[1], left_mq.shape[1])
    floor = max(float(s[0]), float(left_R.norm() * right_R.norm())) * rounding
    kept = s > floor
    s = s[kept]
    return left_Q @ u[:, kept], s / s.norm(), right_Q @ vt[kept].T


def _by_energy(points_Nq: Tensor, clusters: int, bounds: Bounds) -> Tensor:
    """The start without structure: the strongest elements in cluster 0, as many as the floor of the others admits.

    Where energy concentrates in a few rows and columns, as in real gradients, joining strong with strong captures
    more than any cut of a graph that is one lump. With free sizes it is one cluster, plain LoRA.
    """
    N, low = len(points_Nq), bounds[0]
    first = N - (clusters - 1) * low
    place = points_Nq.square().sum(1).argsort(descending=True, stable=True).argsort()
    return torch.where(place < first, 0, 1 + (place - first).div(max(low, 1), rounding_mode="floor"))


def _undecided(
    m: int, n: int, clusters: int, row_bounds: Bounds, col_bounds: Bounds, start: Partition | None
) -> Partition:
    """The partition of an all-zero M: `start` where that is allowed, else contiguous clusters of equal size."""
    if start is not None:
        sizes = ((start.row_sizes, row_bounds), (start.col_sizes, col_bounds))
        if all(low <= min(size) and max(size) <= high for size, (low, high) in sizes):
            return start
    return Partition.from_labels(torch.arange(m) * clusters // m, torch.arange(n) * clusters // n, clusters)


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise PlacementError(f"the rank of a cluster's term must be at least 1, got {rank}")


def _check_clusters(clusters: int, m: int, n: int) -> None:
    most = min(m, n, MAX_CLUSTERS)
    if not 1 <= clusters <= most:
        raise PlacementError(f"a {m} x {n} matrix can have 1..{most} clusters, got {clusters}")


def _check_shape(partition: Partition, m: int, n: int) -> None:
    if (partition.m, partition.n) != (m, n):
        raise PlacementError(f"the partition labels a {partition.m} x {partition.n} matrix, M is {m} x {n}")


def _check_start(start: Partition, clusters: int, m: int, n: int) -> None:
    _check_shape(start, m, n)
    if start.clusters != clusters:
        raise PlacementError(f"start has {start.clusters} clusters, the plan is for {clusters}")
    if start.covered_rows < m or start.covered_cols < n:
        raise PlacementError("start leaves rows or columns uncovered; co-clusters cover all of them")
