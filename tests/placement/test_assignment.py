"""Assignments within bounds are optimal, however scores tie or concentrate."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from localora.placement import assignment
from localora.placement.assignment import assign
from localora.placement.coclustering import size_bounds
from localora.placement.partition import PlacementError

F64 = torch.float64


def optimum(scores: np.ndarray, low: int, high: int) -> float:
    """The best total by scipy: one slot a place, with a bonus that fills `low` places of every cluster first."""
    bonus = 10 * (np.abs(scores).max() + 1)
    slots = np.repeat(np.vstack([scores + bonus, scores]), [low] * len(scores) + [high - low] * len(scores), axis=0)
    chosen = linear_sum_assignment(slots, maximize=True)
    return float(slots[chosen].sum() - bonus * low * len(scores))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(6, 60),
    st.floats(0, 1),
    st.sampled_from(["exponential", "skewed", "ties", "heavy tails"]),
)
def test_assignment_is_optimal(seed: int, clusters: int, size: int, balance: float, kind: str) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.exponential(size=(clusters, size))
    if kind == "skewed":
        scores *= np.linspace(0.1, 3, clusters)[:, None]
    elif kind == "ties":
        scores = np.round(scores) * (rng.random(size) < 0.5)
    elif kind == "heavy tails":
        scores *= np.exp(3 * rng.standard_normal(size)) * np.linspace(0.5, 1, clusters)[:, None]
    low, high = size_bounds(size, clusters, balance)
    labels = assign(torch.from_numpy(scores), low, high).numpy()
    counts = np.bincount(labels, minlength=clusters)
    assert low <= counts.min()
    assert counts.max() <= high
    total, best = scores[labels, np.arange(size)].sum(), optimum(scores, low, high)
    assert total == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_assignment_of_many_needs_few_moves_and_stays_optimal(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores = rng.chisquare(4, 600) ** 2 * (1 + 0.1 * rng.random((4, 600))) * np.linspace(0.5, 1, 4)[:, None]
    best_path, calls = assignment._best_path, []
    monkeypatch.setattr(assignment, "_best_path", lambda *args: calls.append(1) or best_path(*args))
    prices = np.zeros(4)
    labels = assign(torch.from_numpy(scores), 150, 150, prices).numpy()
    assert scores[labels, np.arange(600)].sum() == pytest.approx(optimum(scores, 150, 150), rel=1e-12)
    assert len(calls) <= 12  # without prices there would be 450
    assert prices.any()
    again = assign(torch.from_numpy(scores), 150, 150, prices).numpy()
    assert scores[again, np.arange(600)].sum() == pytest.approx(optimum(scores, 150, 150), rel=1e-12)


def test_what_prices_of_a_similar_call_misplace_within_the_bounds_is_moved_too() -> None:
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1], [0, 0, 0, 0, 0, 0]], dtype=F64)
    labels = assign(scores, 1, 5, np.array([0.0, -3.5]))  # at these prices three are in each: few enough for paths
    assert labels.tolist() == [0, 0, 0, 0, 0, 1]


def test_where_every_cluster_is_full_nothing_moves_and_it_ends() -> None:
    scores = np.random.default_rng(0).exponential(size=(2, 10))
    labels = assign(torch.tensor(scores), 0, 5).numpy()
    assert np.bincount(labels).tolist() == [5, 5]
    assert scores[labels, np.arange(10)].sum() == pytest.approx(optimum(scores, 0, 5))


def test_assignment_refuses_impossible_bounds() -> None:
    with pytest.raises(PlacementError, match=r"10 rows or columns do not fit 3 clusters of 4..5"):
        assign(torch.zeros(3, 10, dtype=F64), 4, 5)


def test_nearly_tied_elements_move_together() -> None:
    # rows of zeros reach the scores as rounding noise; one path must not move one of them at a time, nor loop
    rng = np.random.default_rng(0)
    scores = rng.random((4, 4000)) * 1e-30
    scores[:, :400] = rng.random((4, 400))
    labels = assign(torch.from_numpy(scores), 1000, 1000).numpy()
    best = optimum(scores[:, :400], 0, 400)
    assert np.bincount(labels).tolist() == [1000] * 4
    assert scores[labels, np.arange(4000)].sum() == pytest.approx(best, rel=1e-9)
