"""Elements to clusters, at the best total score within bounds of the clusters' sizes: exact, by prices and paths.

Shape legend
    K  clusters      N  elements to assign (rows or columns)      values (K, N)  what each is worth in each cluster

Everything is float64 on the CPU.
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
PRICE_SAMPLE = 2048  # elements that suffice while prices are rough: twice as fast as all of 4,096
COOLING, MAX_LEVELS = 0.15, 14  # factor from one temperature to the next
WARM = 0.02  # temperature that prices of a similar call are good for, in units of the mean regret
NEWTON_STEPS, LONGEST_STEP = 6, 3  # the second in temperatures
SETTLED = 24  # an element whose best cluster leads by this many temperatures cannot change its mind in those steps
TIE = 1e-12  # relative: gains below it are rounding


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
    reached = np.where(targets, total, -np.inf)  # -inf throughout where no cluster may grow
    return _trace(before, int(reached.argmax()))[::-1], float(reached.max())


def _trace(before: NDArray[np.int64], last: int) -> list[int]:
    """The path that ends at `last`, backwards."""
    path = [last]
    while before[path[-1]] != path[-1]:
        path.append(int(before[path[-1]]))
    return path
