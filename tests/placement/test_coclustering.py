"""Planted clusters are found; energies and correlations equal dense oracles; assignments are optimal."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from dense_blocks import dense
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import SpectralCoclustering
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from localora.placement import coclustering
from localora.placement.captured import captured_energy, subspace_correlation, unit_svd
from localora.placement.coclustering import (
    _alternate,
    number_by_first_mention,
    number_like,
    plan_coclusters,
    size_bounds,
)
from localora.placement.partition import Partition, PlacementError

F64 = torch.float64


def planted(
    m: int, n: int, clusters: int, rank: int, seed: int, *, noise: float = 0.0, uneven: bool = False
) -> tuple[Tensor, Partition]:
    """Shuffled blocks of random rank-r products (sizes 1:2:3:... if uneven), ||signal||_F = 1, ||noise||_F given."""
    g = torch.Generator().manual_seed(seed)
    shares = torch.arange(1, clusters + 1, dtype=F64) if uneven else torch.ones(clusters, dtype=F64)
    ends = shares.cumsum(0) / shares.sum()
    rows, cols = (
        torch.searchsorted(ends, (torch.arange(size, dtype=F64) + 0.5) / size)[torch.randperm(size, generator=g)]
        for size in (m, n)
    )
    B, A = torch.randn(m, rank, generator=g, dtype=F64), torch.randn(rank, n, generator=g, dtype=F64)
    M = torch.zeros(m, n, dtype=F64)
    for k in range(clusters):
        block = (rows == k)[:, None] & (cols == k)
        M[block] = (B @ A)[block]
    W = torch.randn(m, n, generator=g, dtype=F64)
    return M / M.norm() + noise * W / W.norm(), Partition.from_labels(rows, cols, clusters)


def rand_indices(found: Partition, truth: Partition) -> tuple[float, float]:
    return (
        adjusted_rand_score(found.row_labels, truth.row_labels),
        adjusted_rand_score(found.col_labels, truth.col_labels),
    )


# --- planted clusters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("clusters", [2, 4, 8])
@pytest.mark.parametrize("seed", range(2))
def test_noiseless_clusters_are_found_exactly(clusters: int, uneven: bool, seed: int) -> None:
    M, truth = planted(128, 160, clusters, 2, seed, uneven=uneven)
    result = plan_coclusters(*dense(M), clusters=clusters, rank=2, balance=0.0 if uneven else 1.0)
    assert rand_indices(result.partition, truth) == (1.0, 1.0)
    assert result.captured_energy == pytest.approx(1.0, abs=1e-12)
    assert result.subspace_correlation == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("uneven", "balance"), [(False, 0.0), (False, 1.0), (True, 0.0)])
@pytest.mark.parametrize("clusters", [2, 4, 8])
@pytest.mark.parametrize("seed", range(2))
def test_clusters_in_as_much_noise_as_signal(clusters: int, uneven: bool, balance: float, seed: int) -> None:
    M, truth = planted(384, 288, clusters, 4, seed, noise=1.0, uneven=uneven)
    result = plan_coclusters(*dense(M), clusters=clusters, rank=4, balance=balance)
    ours = rand_indices(result.partition, truth)
    assert min(ours) >= 0.95
    peer = SpectralCoclustering(clusters, random_state=0).fit(M.abs().numpy())
    theirs = rand_indices(Partition.from_labels(peer.row_labels_, peer.column_labels_, clusters), truth)
    assert ours[0] >= theirs[0]
    assert ours[1] >= theirs[1]


def test_weak_clusters_are_found_beside_strong_ones() -> None:
    M, truth = planted(160, 160, 4, 2, seed=3)
    strength = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=F64)
    M = M * strength[truth.row_labels.long()][:, None]
    result = plan_coclusters(*dense(M), clusters=4, rank=2, balance=0.0)
    assert rand_indices(result.partition, truth) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("clusters", "strengths", "noise", "rank", "not_enough"),
    [(8, 8.0, 0.5, 3, 1.0), (6, 1.0, 1.0, 12, 0.0)],
    ids=["weak clusters need power 0", "a rank above the planted one needs power 1"],
)
def test_each_spectral_start_is_needed(
    clusters: int,
    strengths: float,
    noise: float,
    rank: int,
    not_enough: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    M, truth = planted(200, 160, clusters, 3, seed=0)
    strength = strengths ** -torch.linspace(0, 1, clusters, dtype=F64)
    M = M * strength[truth.row_labels.long()][:, None]
    W = torch.randn(200, 160, generator=torch.Generator().manual_seed(100), dtype=F64)
    M = M / M.norm() + noise * W / W.norm()
    both = plan_coclusters(*dense(M), clusters=clusters, rank=rank, balance=0.0)
    monkeypatch.setattr(coclustering, "START_POWERS", (not_enough,))
    one = plan_coclusters(*dense(M), clusters=clusters, rank=rank, balance=0.0)
    assert both.captured_energy > one.captured_energy
    assert min(rand_indices(both.partition, truth)) > min(rand_indices(one.partition, truth)) + 0.02


def test_large_matrices_are_sampled_and_still_solved() -> None:
    g = torch.Generator().manual_seed(0)
    rows, cols = torch.randint(6, (5000,), generator=g), torch.randint(6, (3000,), generator=g)
    direction = torch.arange(18) // 3  # cluster k lives in directions 3k..3k+2 of the factors
    left = torch.randn(5000, 18, generator=g) * (direction == rows[:, None])
    right = torch.randn(18, 3000, generator=g) * (direction[:, None] == cols)
    mix = torch.linalg.qr(torch.randn(18, 18, generator=g)).Q
    result = plan_coclusters(left @ mix, mix.T @ right, clusters=6, rank=3, balance=0.0)
    assert rand_indices(result.partition, Partition.from_labels(rows, cols, 6)) == (1.0, 1.0)


def test_energy_in_few_rows_and_columns_is_gathered_in_one_cluster() -> None:
    # no block structure at all: the best halves put the strong rows and the strong columns together
    g = torch.Generator().manual_seed(1)
    left, right = torch.randn(64, 8, generator=g, dtype=F64), torch.randn(8, 96, generator=g, dtype=F64)
    left[::2] *= 30
    right[:, 1::2] *= 30
    result = plan_coclusters(left, right, clusters=2, rank=8, balance=1.0)
    strong_rows, strong_cols = result.partition.row_labels[::2], result.partition.col_labels[1::2]
    assert torch.equal(strong_rows, torch.full_like(strong_rows, int(strong_cols[0])))
    assert torch.equal(strong_cols, torch.full_like(strong_cols, int(strong_cols[0])))


def test_free_sizes_on_a_low_rank_matrix_give_plain_lora() -> None:
    g = torch.Generator().manual_seed(2)
    left, right = torch.randn(60, 3, generator=g), torch.randn(3, 40, generator=g)
    result = plan_coclusters(left, right, clusters=4, rank=3, balance=0.0)
    assert result.partition.row_sizes == (60, 0, 0, 0)
    assert result.partition.col_sizes == (40, 0, 0, 0)
    assert result.captured_energy == pytest.approx(1.0, abs=1e-12)


# --- oracles -------------------------------------------------------------------------------------------------------


def test_result_reports_the_public_measures() -> None:
    M, _ = planted(40, 50, 3, 2, 0, noise=1.0)
    result = plan_coclusters(*dense(M), clusters=3, rank=2, balance=0.5)
    assert result.captured_energy == captured_energy(*dense(M), result.partition, 2)
    assert result.subspace_correlation == subspace_correlation(*unit_svd(*dense(M)), result.partition, 2)


# --- alternation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_alternation_never_loses_energy(balance: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    U, s, V = unit_svd(torch.randn(90, 12, generator=g), torch.randn(12, 70, generator=g))
    labels = torch.randint(3, (90,), generator=g), torch.randint(3, (70,), generator=g)
    run = _alternate(U * s, V, labels, 3, 2, (size_bounds(90, 3, balance), size_bounds(70, 3, balance)), 30)
    energies = torch.tensor(run.energies, dtype=F64)
    assert len(energies) >= 6
    assert (energies.diff() >= -1e-12).all()
    assert energies[-1] > energies[0] + 0.01
    partition = Partition.from_labels(*run.labels, 3)
    assert run.energy() == pytest.approx(captured_energy(U * s, V.T, partition, 2), abs=1e-12)


def test_search_in_few_directions_is_polished_on_all() -> None:
    M, _ = planted(120, 100, 5, 3, 0, noise=2.0)
    result = plan_coclusters(*dense(M), clusters=5, rank=3, balance=1.0)
    U, s, V = unit_svd(*dense(M))
    labels = result.partition.row_labels.long(), result.partition.col_labels.long()
    further = _alternate(U * s, V, labels, 5, 3, (size_bounds(120, 5, 1.0), size_bounds(100, 5, 1.0)), 2)
    assert further.energy() <= result.captured_energy * (1 + 2 * coclustering.TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.floats(0, 1), st.integers(7, 40), st.integers(7, 40))
def test_sizes_respect_balance(seed: int, clusters: int, balance: float, m: int, n: int) -> None:
    g = torch.Generator().manual_seed(seed)
    left, right = torch.randn(m, 3, generator=g), torch.randn(3, n, generator=g)
    found = plan_coclusters(left, right, clusters=clusters, rank=2, balance=balance).partition
    for size, sizes in ((m, found.row_sizes), (n, found.col_sizes)):
        low = np.floor(balance * size / clusters)
        high = np.ceil(size / clusters * (1 + (1 - balance) * (clusters - 1)))
        assert low <= min(sizes)
        assert max(sizes) <= high


@pytest.mark.parametrize("balance", [0.3, 1.0])
def test_start_is_improved_never_worsened_and_keeps_its_numbers(balance: float) -> None:
    M, truth = planted(120, 100, 4, 3, 1, noise=0.5)
    shuffled = torch.tensor([2, 0, 3, 1])
    start = Partition.from_labels(shuffled[truth.row_labels.long()], shuffled[truth.col_labels.long()], 4)
    rows = start.row_labels
    rows[:12] = (rows[:12] + 1) % 4
    damaged = Partition.from_labels(rows, start.col_labels, 4)
    found = plan_coclusters(*dense(M), clusters=4, rank=3, balance=balance, start=damaged)
    assert found.captured_energy > captured_energy(*dense(M), damaged, 3)
    assert (found.partition.row_labels == start.row_labels).double().mean() > 0.97
    settled = plan_coclusters(*dense(M), clusters=4, rank=3, balance=balance, start=found.partition, seed=9)
    assert settled.partition == found.partition


def test_a_start_better_than_any_found_anew_is_kept() -> None:
    g = torch.Generator().manual_seed(0)
    left = torch.randn(80, 12, generator=g)
    right = torch.randn(12, 70, generator=g) * 0.8 ** torch.arange(12)[:, None]
    args: dict[str, Any] = {"clusters": 4, "rank": 2, "balance": 1.0}
    plans = sorted((plan_coclusters(left, right, **args, seed=seed).captured_energy, seed) for seed in range(8))
    (worst, bad_seed), (best, good_seed) = plans[0], plans[-1]
    assert best > worst * 1.001
    start = plan_coclusters(left, right, **args, seed=good_seed).partition
    number = torch.tensor([3, 1, 0, 2])
    start = Partition.from_labels(number[start.row_labels.long()], number[start.col_labels.long()], 4)
    kept = plan_coclusters(left, right, **args, seed=bad_seed, start=start)
    assert kept.captured_energy >= best - 1e-12
    assert rand_indices(kept.partition, start)[0] > 0.9
    assert (kept.partition.row_labels == start.row_labels).double().mean() > 0.9


@pytest.mark.parametrize("labels", [[0, 1] * 4, [0, 0, 1, 1] * 2])
def test_a_start_is_kept_where_others_capture_as_much(labels: list[int]) -> None:
    """Of a matrix of ones any two equal halves capture one half."""
    start = Partition.from_labels(labels, labels, 2)
    result = plan_coclusters(*dense(torch.ones(8, 8)), clusters=2, rank=1, balance=1.0, start=start)
    assert result.partition == start
    assert result.captured_energy == pytest.approx(0.5)
    anew = plan_coclusters(*dense(torch.ones(8, 8)), clusters=2, rank=1, balance=1.0)
    assert anew.partition != start
    assert anew.captured_energy == pytest.approx(0.5)


def test_a_poor_start_loses_to_the_spectral_one() -> None:
    M, truth = planted(120, 100, 4, 3, 2, noise=0.3)
    bad = Partition.from_labels(torch.zeros(120, dtype=torch.int64), torch.zeros(100, dtype=torch.int64), 4)
    result = plan_coclusters(*dense(M), clusters=4, rank=3, balance=0.0, start=bad)
    assert min(rand_indices(result.partition, truth)) > 0.95


# --- determinism and cost ------------------------------------------------------------------------------------------


def test_same_seed_same_labels_whatever_dtype_layout_and_global_generator() -> None:
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(200, 9, generator=g), torch.randn(9, 150, generator=g)
    args: dict[str, Any] = {"clusters": 5, "rank": 2, "balance": 0.5, "seed": 7}
    first = plan_coclusters(left, right, **args)
    state = torch.get_rng_state()
    torch.manual_seed(123)
    again = plan_coclusters(left.double(), right.T.contiguous().T.requires_grad_(), **args)
    assert again == first
    torch.manual_seed(123)
    assert torch.equal(torch.get_rng_state(), torch.get_rng_state())
    expected = torch.rand(3)
    torch.manual_seed(123)
    plan_coclusters(left, right, **args)
    assert torch.equal(torch.rand(3), expected)  # the global generator was not touched
    torch.set_rng_state(state)


def test_clusters_are_numbered_by_first_row() -> None:
    rows, cols = number_by_first_mention(torch.tensor([3, 3, 0, 3]), torch.tensor([0, 2, 3]), 5)
    assert rows.tolist() == [0, 0, 1, 0]
    assert cols.tolist() == [1, 2, 0]
    M, _ = planted(60, 50, 4, 2, 0)
    labels = plan_coclusters(*dense(M), clusters=4, rank=2, balance=1.0).partition.row_labels.tolist()
    assert list(dict.fromkeys(labels)) == [0, 1, 2, 3]


def test_numbers_follow_the_start() -> None:
    start = Partition.from_labels([2, 2, 0, 0, 1], [2, 0, 1], 3)
    rows, cols = number_like(start, torch.tensor([0, 0, 1, 0, 2]), torch.tensor([0, 1, 2]))
    assert rows.tolist() == [2, 2, 0, 2, 1]
    assert cols.tolist() == [2, 0, 1]


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, Tensor) and t.layout == torch.strided]
        self.numel = max([self.numel, *sizes])
        return out


def test_memory_is_linear_in_rows_and_columns() -> None:
    m = n = 4096
    q, clusters = 16, 4
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(m, q, generator=g), torch.randn(q, n, generator=g)
    tracemalloc.start()  # numpy's arrays, which the dispatch mode does not see
    with LargestTensor() as largest:
        plan_coclusters(left, right, clusters=clusters, rank=4, balance=1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert m * q <= largest.numel <= 8 * (m + n) * q  # M has 128 (m + n) q elements
    assert peak <= 16 * 8 * (m + n) * clusters


@pytest.mark.parametrize(
    ("size", "clusters", "balance", "bounds"),
    [(10, 4, 0.0, (0, 10)), (10, 4, 0.5, (1, 7)), (10, 4, 1.0, (2, 3)), (12, 4, 1.0, (3, 3)), (5, 1, 0.3, (1, 5))],
)
def test_balance_goes_from_free_sizes_to_equal_ones(
    size: int, clusters: int, balance: float, bounds: tuple[int, int]
) -> None:
    assert size_bounds(size, clusters, balance) == bounds


# --- degenerate input ----------------------------------------------------------------------------------------------


def test_all_zero_gives_contiguous_equal_clusters() -> None:
    left, right = torch.zeros(7, 2), torch.ones(2, 10)
    result = plan_coclusters(left, right, clusters=3, rank=2, balance=0.4)
    assert result.partition.row_labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert result.partition.col_labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (result.captured_energy, result.subspace_correlation) == (0.0, 0.0)
    assert captured_energy(left, right, result.partition, 2) == 0.0
    assert subspace_correlation(*unit_svd(left, right), result.partition, 2) == 0.0


def test_all_zero_keeps_the_start() -> None:
    left, right = torch.ones(6, 2), torch.tensor([[1.0], [-1.0]]).expand(2, 4)  # the product cancels
    start = Partition.from_labels([1, 0, 1, 0, 1, 0], [1, 1, 0, 0], 2)
    assert plan_coclusters(left, right, clusters=2, rank=1, balance=1.0, start=start).partition == start


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_ties_and_zero_rows(balance: float) -> None:
    M = torch.ones(9, 12)
    M[5:] = 0
    result = plan_coclusters(*dense(M), clusters=3, rank=1, balance=balance)
    low, high = size_bounds(9, 3, balance)
    assert low <= min(result.partition.row_sizes)
    assert max(result.partition.row_sizes) <= high
    # rows alike: the more of them share a cluster, the more is captured, and balance alone forbids the whole
    best = {0.0: 1.0, 0.5: (5 * 8) / (5 * 12), 1.0: (3 * 4 + 2 * 4) / (5 * 12)}[balance]
    assert result.captured_energy == pytest.approx(best)


def test_one_row_and_one_column() -> None:
    row = plan_coclusters(torch.ones(1, 1), torch.randn(1, 5), clusters=1, rank=3, balance=1.0)
    assert row.partition == Partition.whole(1, 5)
    assert row.captured_energy == pytest.approx(1.0)
    col = plan_coclusters(torch.randn(4, 1), torch.ones(1, 1), clusters=1, rank=1, balance=0.0)
    assert col.partition == Partition.whole(4, 1)
    assert col.subspace_correlation == 0.0


def test_as_many_clusters_as_rows() -> None:
    M = torch.diag(torch.arange(1.0, 6.0))[torch.tensor([3, 1, 4, 0, 2])]
    result = plan_coclusters(*dense(M), clusters=5, rank=1, balance=1.0)
    assert result.captured_energy == pytest.approx(1.0)
    assert result.partition.row_labels.tolist() == [0, 1, 2, 3, 4]
    assert result.partition.col_labels.tolist() == [3, 1, 4, 0, 2]


def test_largest_cluster_number() -> None:
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(254, 6, generator=g), torch.randn(6, 127, generator=g)
    result = plan_coclusters(left, right, clusters=127, rank=1, balance=1.0)
    assert result.partition.row_sizes == (2,) * 127
    assert result.partition.col_sizes == (1,) * 127
    contiguous = Partition.from_labels(torch.arange(254) // 2, torch.arange(127), 127)
    assert result.captured_energy > 2 * captured_energy(left, right, contiguous, 1)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_extreme_scales(scale: float) -> None:
    M, truth = planted(40, 40, 2, 2, 0)
    result = plan_coclusters(M * scale, torch.eye(40, dtype=F64), clusters=2, rank=2, balance=1.0)
    assert rand_indices(result.partition, truth) == (1.0, 1.0)


L, R = torch.ones(6, 2), torch.ones(2, 4)
SPLIT = Partition.from_labels([0, 0, 0, 1, 1, 1], [0, 0, 1, 1], 2)


@pytest.mark.parametrize(
    ("left", "right", "change", "message"),
    [
        (L * float("nan"), R, {}, "left factor of M holds NaN.*lower the learning rate"),
        (L, R / 0, {}, "right factor of M holds NaN or infinity.*calibration batches"),
        (L, R, {"clusters": 5}, r"6 x 4 matrix can have 1..4 clusters, got 5"),
        (L, R, {"clusters": 0}, "can have 1..4 clusters, got 0"),
        (torch.ones(300, 1), torch.ones(1, 300), {"clusters": 128}, "1..127 clusters, got 128"),
        (L, R, {"rank": 0}, "at least 1, got 0"),
        (L, R, {"balance": 1.1}, "balance must lie in 0"),
        (L, R, {"balance": float("nan")}, "balance must lie in 0"),
        (L, torch.ones(3, 4), {}, r"must be \(m, q\) and \(q, n\), got \(6, 2\) and \(3, 4\)"),
        (L[:, 0], R, {}, r"must be \(m, q\)"),
        (torch.ones(6, 0), torch.ones(0, 4), {}, "are empty"),
        (L, R, {"start": Partition.whole(6, 5)}, "labels a 6 x 5 matrix, M is 6 x 4"),
        (L, R, {"start": Partition.whole(6, 4)}, "start has 1 clusters, the plan is for 2"),
        (L, R, {"start": Partition.from_labels([0] * 5 + [-1], [0, 1, 0, 1], 2)}, "uncovered"),
    ],
)
def test_bad_input(left: Tensor, right: Tensor, change: dict[str, Any], message: str) -> None:
    args: dict[str, Any] = {"clusters": 2, "rank": 1, "balance": 1.0} | change
    with pytest.raises(PlacementError, match=message):
        plan_coclusters(left, right, **args)


def test_captured_energy_refuses_bad_input() -> None:
    assert captured_energy(L, R, SPLIT, 1) > 0
    with pytest.raises(PlacementError, match="labels a 5 x 4 matrix, M is 6 x 4"):
        captured_energy(L, R, Partition.whole(5, 4), 1)
    with pytest.raises(PlacementError, match="at least 1, got 0"):
        captured_energy(L, R, SPLIT, 0)
    with pytest.raises(PlacementError, match="lower the learning rate"):
        captured_energy(L / 0, R, SPLIT, 1)


@pytest.mark.parametrize("seed", [0, 3, 6, 7])
def test_rounding_decides_nothing_where_clusters_have_fewer_rows_than_ranks(seed: int) -> None:
    """A cluster of two rows leaves two of four directions open: who fills them is no matter of the 16th digit."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(16, 16, generator=generator, dtype=torch.float64) * 0.8 ** torch.arange(16)
    left = left * torch.exp(torch.randn(16, 1, generator=generator, dtype=torch.float64))
    right = torch.randn(16, 32, generator=generator, dtype=torch.float64)
    noise = torch.randn(5, *right.shape, generator=generator, dtype=torch.float64) * 1e-15
    plans = [plan_coclusters(left, right * (1 + e), clusters=3, rank=4, balance=0.5).partition for e in noise]
    assert len(set(plans)) == 1
