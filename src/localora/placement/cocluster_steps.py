"""The two steps of the co-clustering planner that stand alone: where it starts, and how it assigns under size bounds.

Shape legend
    m, n  rows and columns of M      q  directions of its thin SVD M = U diag(s) V^T
    K     clusters                   N  elements to assign (rows or columns)
    a, b  rows and columns in the sample that the spectral start looks at

Everything is float64 on the CPU; random choices come from the generator the caller hands in.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localora.placement.partition import PlacementError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
SAMPLE = 768  # rows and columns the spectral start looks at: a constant, so its dense a x b graph is one too
SAMPLE_PER_CLUSTER = 16
SUBSPACE_ITERATIONS = 12
KMEANS_RESTARTS, KMEANS_ITERATIONS = 5, 25
PRICE_SAMPLE = 2048  # elements that suffice while prices are rough
COOLING, MAX_LEVELS = 0.15, 14  # factor from one temperature to the next
WARM = 0.02  # temperature that prices of a similar call are good for, in units of the mean regret
NEWTON_STEPS, LONGEST_STEP = 6, 3  # the second in temperatures
SETTLED = 24  # an element whose best cluster leads by this many temperatures cannot change its mind in those steps
TIE = 1e-12  # relative: gains below it are rounding


def grams(points_Nq: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """`(K, q, q)`: P^T P of each cluster's points P."""
    groups = [points_Nq[labels == k] for k in range(clusters)]
    return torch.stack([P.T @ P for P in groups])


def spectral_start(
    U: Tensor, s: Tensor, V: Tensor, clusters: int, power: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """First labels of rows `(m,)` and columns `(n,)`: a sample gets labels 0..K-1, the rest -1.

    Cuts the bipartite graph with edge weights E = (U diag(s)^power V^T)^2, entrywise: the leading K singular vectors
    of D_r^-1/2 E D_c^-1/2, rows and columns clustered together by k-means (Dhillon, KDD 2001; each point on the unit
    sphere as in Ng, Jordan and Weiss, 2001). With power 1 the edges are the energies of M. With power 0 each singular
    direction counts alike: U V^T is block-diagonal for planted clusters too, and weak clusters show as much as strong
    ones, which energies hide.

    Only a sample of rows and columns is embedded. A factored product with all of E costs (m + n) q^2 a vector, which
    at q = 64 is more than all the alternation after it; the alternation labels the rest in its first round anyway.

    References:
        I. S. Dhillon, Co-clustering documents and words using bipartite spectral graph partitioning, 2001.
        https://doi.org/10.1145/502512.502550
    """
    scale = s**power
    rows = _sample((U * scale).square().sum(1), clusters, generator)
    cols = _sample((V * scale).square().sum(1), clusters, generator)
    E = ((U[rows] * scale) @ V[cols].T).square()
    row_degree, col_degree = (E.sum(dim).clamp(min=torch.finfo(E.dtype).tiny).rsqrt() for dim in (1, 0))
    E = E * row_degree[:, None] * col_degree
    left, right = _leading_singular_vectors(E, clusters, generator)
    points = torch.nn.functional.normalize(torch.cat([left, right]), dim=1)
    labels = kmeans(points, clusters, generator)
    row_labels, col_labels = torch.full((len(U),), -1), torch.full((len(V),), -1)
    row_labels[rows], col_labels[cols] = labels[: len(rows)], labels[len(rows) :]
    return row_labels, col_labels


def _sample(energy: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Indices of all elements if they are few, else of a sample: half by energy, half alike for every element."""
    size = max(SAMPLE, SAMPLE_PER_CLUSTER * clusters)
    if len(energy) <= size:
        return torch.arange(len(energy))
    chance = energy / energy.sum() + 1 / len(energy)
    return torch.multinomial(chance, size, generator=generator).sort().values


def _leading_singular_vectors(E: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`(a, count)` and `(b, count)`, by subspace iteration; fewer columns when E has fewer."""
    width = min(count + 8, *E.shape)
    right = torch.randn(E.shape[1], width, generator=generator, dtype=E.dtype)
    for _ in range(SUBSPACE_ITERATIONS):
        right = torch.linalg.qr(E.T @ (E @ right)).Q
    left, _, rotation = torch.linalg.svd(E @ right, full_matrices=False)
    return left[:, :count], (right @ rotation.T)[:, :count]


def kmeans(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Labels `(N,)` of points `(N, d)`: Lloyd's algorithm from k-means++ seeds, the best of a few restarts."""
    best, best_cost = torch.zeros(len(points), dtype=torch.int64), float("inf")
    square = points.square().sum(1)

    def distances(centres: Tensor) -> Tensor:
        return (square[:, None] - 2 * points @ centres.T + centres.square().sum(1)).clamp(min=0)

    for _ in range(KMEANS_RESTARTS):
        chosen = torch.randint(len(points), (1,), generator=generator)
        nearest = distances(points[chosen])[:, 0]
        while len(chosen) < clusters:
            # the floor keeps the draw defined when every point already coincides with a seed
            seed = torch.multinomial(nearest.clamp(min=1e-300), 1, generator=generator)
            chosen = torch.cat([chosen, seed])
            nearest = torch.minimum(nearest, distances(points[seed])[:, 0])
        centres, labels = points[chosen], torch.full((len(points),), -1)
        for _ in range(KMEANS_ITERATIONS):
            cost, updated = distances(centres).min(1)
            if torch.equal(updated, labels):
                break
            labels = updated
            sums = torch.zeros_like(centres).index_add_(0, labels, points)
            counts = torch.bincount(labels, minlength=clusters)[:, None]
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        if cost.sum() < best_cost:
            best, best_cost = labels, float(cost.sum())
    return best


def assign(scores_KN: Tensor, low: int, high: int, prices: Array | None = None) -> Tensor:
    """The labels `(N,)` that maximise sum_i scores[labels[i], i] with every cluster's size in low..high.

    Exact up to rounding. Prices p found on a smoothed dual make argmax_k scores[k, i] - p_k almost right; the few
    elements too many are then moved along the best paths between clusters. Each step leaves the labelling optimal for
    its own sizes (successive shortest paths), so where no path gains any more, it is optimal.

    Args:
        scores_KN: float64, finite.
        low, high: bounds with K low <= N <= K high.
        prices: `(K,)`, zeros or those of a similar call, to start from; updated in place.

    Raises:
        PlacementError: no sizes within the bounds add up to N.
    """
    values = np.ascontiguousarray(scores_KN.numpy())
    K, N = values.shape
    if not K * low <= N <= K * high:
        raise PlacementError(f"{N} rows or columns do not fit {K} clusters of {low}..{high}")
    labels = _choices(values)
    sizes = np.bincount(labels, minlength=K)
    if sizes.max() > high or sizes.min() < low:
        prices = np.zeros(K) if prices is None else prices
        _settle_prices(values, prices, low, high)
        labels = _choices(values - prices[:, None])
        _move_along_paths(values, labels, low, high)
    return torch.from_numpy(labels)


def _choices(values_KN: Array) -> NDArray[np.int64]:
    """argmax over clusters, the lowest on ties; ten times as fast as numpy's along a short first axis."""
    best, labels = values_KN[0].copy(), np.zeros(values_KN.shape[1], dtype=np.int64)
    for k in range(1, len(values_KN)):
        better = values_KN[k] > best
        labels[better] = k
        np.maximum(best, values_KN[k], out=best)
    return labels


def _settle_prices(values: Array, prices: Array, low: int, high: int) -> None:
    """Prices <= 0 that nearly balance the market, in place: a dual smoothed by a temperature, cooled step by step.

    The floor alone has to be priced: every planner bound has high = N - (K - 1) low up to rounding, so clusters at
    their floor cap the others. How far to cool depends on the scores: heavy-tailed ones, a few rows with most of the
    energy, decide far below the mean regret. So it cools until few elements are misplaced, first on a sample.
    """
    K, N = values.shape
    best = values.max(0)
    regret = float((best - values.mean(0)).mean())
    if regret <= 0:
        return
    indifferent = int((best - values.min(0) <= TIE * regret).sum())  # zero rows fill any gap, at no price
    floor = max(low, (N - high) / (K - 1))
    few = np.ascontiguousarray(values[:, :: max(1, N // max(PRICE_SAMPLE, 64 * K))])
    phases = [(values, indifferent + K + N // 4096)]
    temperature = regret * WARM
    if not prices.any():
        phases.insert(0, (few, (indifferent + N // 100) * few.shape[1] // N))
        temperature = regret
    for sample, tolerated in phases:
        wanted = floor * sample.shape[1] / N
        for _ in range(MAX_LEVELS):
            sizes = np.bincount(_choices(sample - prices[:, None]), minlength=K)
            misplaced = np.where(prices < 0, np.abs(wanted - sizes), np.maximum(wanted - sizes, 0)).sum()
            if misplaced <= tolerated:
                break
            if _balance(sample, prices, wanted, temperature):
                temperature *= COOLING
        temperature /= COOLING**2  # the sample's prices are off by more than its last temperature


def _balance(values: Array, prices: Array, floor: float, t: float) -> bool:
    """Damped Newton steps on `prices`, in place, until softmax demand at temperature t meets the floor; if it did.

    A cluster below its floor is subsidised until its demand is the floor; the most wanted of the others stays at 0
    as the reference, since shifting all prices changes no choice.
    """
    net = values - prices[:, None]
    rivals = net > net.max(0) - SETTLED * t
    undecided = rivals.sum(0) > 1
    settled = rivals[:, ~undecided].sum(1)  # their softmax is one-hot, whatever the steps do
    values = values[:, undecided]
    for _ in range(NEWTON_STEPS):
        demand = (values - prices[:, None]) / t
        demand -= demand.max(0, initial=-np.inf)
        np.exp(demand, out=demand)
        demand /= demand.sum(0)
        moving = demand.sum(1)
        total = settled + moving
        short = (prices < 0) | (total < floor)
        short[np.where(prices == 0, total, -1.0).argmax()] = False
        if not short.any():
            return True
        slope = ((np.diag(moving) - demand @ demand.T) / t)[np.ix_(short, short)]
        ridge = 1e-9 * floor / t * np.eye(len(slope))
        step = np.linalg.solve(slope + ridge, total[short] - floor)
        prices[short] = np.minimum(prices[short] + step.clip(-LONGEST_STEP * t, LONGEST_STEP * t), 0.0)
        if np.abs(step).max() < 0.1 * t:
            return True
    return False


def _move_along_paths(values: Array, labels: NDArray[np.int64], low: int, high: int) -> None:
    """Repair and improve `labels` in place until sizes lie in low..high and no path between clusters gains."""
    K = len(values)
    tie = TIE * float(np.abs(values).max())
    members = [np.flatnonzero(labels == k) for k in range(K)]
    gains = np.stack([_best_gains(values, members[k], k) for k in range(K)])
    while True:
        sizes = np.array([len(i) for i in members])
        over, under = sizes > high, sizes < low
        sources = over if over.any() else sizes > low
        targets = under if under.any() and not over.any() else sizes < high
        path, gain = _best_path(gains, sources, targets, tie)
        if not (over.any() or under.any()) and gain <= K * tie:
            return
        surplus = sizes[path[0]] - (high if over.any() else low)
        room = (low if under.any() and not over.any() else high) - sizes[path[-1]]
        edges = list(pairwise(path))
        # elements that tie with the best one move together: all-zero rows come in thousands
        movers = [i[values[to, i] - values[k, i] >= gains[k, to] - tie] for (k, to) in edges for i in [members[k]]]
        count = min(surplus, room, *(len(i) for i in movers))
        for (_, to), i in zip(edges, movers, strict=True):
            labels[i[:count]] = to
        for k in path:
            members[k] = np.flatnonzero(labels == k)
            gains[k] = _best_gains(values, members[k], k)


def _best_gains(values: Array, members: NDArray[np.int64], k: int) -> Array:
    """`(K,)`: the most that moving one member of cluster k to each cluster can add; 0 for staying."""
    gains = np.full(len(values), -np.inf)
    if len(members):
        mine = values[:, members]
        gains = (mine - mine[k]).max(1)
    gains[k] = 0.0
    return gains


def _best_path(gains: Array, sources: Mask, targets: Mask, tie: float) -> tuple[list[int], float]:
    """The clusters on the path from any source to any target with the greatest total gain, and that gain.

    Bellman and Ford's relaxation. No cycle gains, as the labelling is optimal for its sizes; rounding may pretend so,
    hence the look back.
    """
    total, before = np.where(sources, 0.0, -np.inf), np.arange(len(gains))
    for _ in range(len(gains)):
        via = total[:, None] + gains
        better = np.flatnonzero(via.max(0) > total + tie)
        for k in better:
            last = int(via[:, k].argmax())
            if k not in _trace(before, last):
                before[k], total[k] = last, via[last, k]
        if len(better) == 0:
            break
    path = _trace(before, int(np.where(targets, total, -np.inf).argmax()))
    return path[::-1], float(total[path[0]])


def _trace(before: NDArray[np.int64], last: int) -> list[int]:
    """The path that ends at `last`, backwards."""
    path = [last]
    while before[path[-1]] != path[-1]:
        path.append(int(before[path[-1]]))
    return path
