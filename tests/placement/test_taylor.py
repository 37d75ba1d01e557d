"""Scores equal what a real weight.grad gives, whole tensors in float64; a planted block comes back exactly."""

from __future__ import annotations

import pytest
import torch
from linear_pass import M, N, pass_of
from torch import Tensor

from localora.placement import taylor
from localora.placement.partition import Partition, PlacementError
from localora.placement.taylor import TaylorScores, band_rows, plan_block


def test_planted_block_is_found_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    importance = torch.rand(40, 30, generator=generator)
    rows = torch.randperm(40, generator=generator)[:10]
    cols = torch.randperm(30, generator=generator)[:7]
    importance[rows[:, None], cols] += 4
    partition = plan_block(importance.sum(1), importance.sum(0), 10, 7)
    planted = torch.zeros(40, 30, dtype=torch.bool)
    planted[rows[:, None], cols] = True
    assert torch.equal(partition.mask(), planted)


def test_ties_and_zeros_go_to_the_lower_index() -> None:
    partition = plan_block(torch.tensor([1.0, 3.0, 3.0, 3.0]), torch.zeros(5), 2, 3)
    assert partition.row_labels.tolist() == [-1, 0, 0, -1]
    assert partition.col_labels.tolist() == [0, 0, 0, -1, -1]


def test_the_whole_matrix_and_one_row() -> None:
    assert plan_block(torch.rand(4), torch.rand(3), 4, 3).mask().all()
    assert plan_block(torch.tensor([2.0]), torch.tensor([1.0, 5.0]), 1, 1).mask().tolist() == [[False, True]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_must_be_finite(bad: float) -> None:
    with pytest.raises(PlacementError, match="column scores hold NaN or infinity; check the calibration batches"):
        plan_block(torch.ones(3), torch.tensor([1.0, bad]), 1, 1)


@pytest.mark.parametrize(
    ("rows", "cols", "message"), [(0, 1, "0 of 3 rows"), (4, 1, "4 of 3 rows"), (1, 3, "3 of 2 col")]
)
def test_sizes_must_fit(rows: int, cols: int, message: str) -> None:
    with pytest.raises(PlacementError, match=f"cannot choose {message}"):
        plan_block(torch.ones(3), torch.ones(2), rows, cols)


def test_scores_must_be_vectors() -> None:
    with pytest.raises(PlacementError, match=r"row scores must be a vector, got shape \(3, 2\)"):
        plan_block(torch.ones(3, 2), torch.ones(2), 1, 1)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(M, N, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def test_taylor_scores_are_sums_of_each_batch_s_w_times_grad(weight: Tensor) -> None:
    scores = TaylorScores(M, N)
    importance = torch.zeros(M, N, dtype=torch.float64)
    for seed in range(3):
        x, g, G = pass_of(seed)
        scores.observe(x, g, weight)
        importance += (weight * G).abs()
    torch.testing.assert_close(scores.rows, importance.sum(1))
    torch.testing.assert_close(scores.cols, importance.sum(0))
    torch.testing.assert_close(scores.total, importance.sum())
    assert scores.batches == 3
    assert scores.inside_share == pytest.approx(1.0)


def test_taylor_scores_within_a_block(weight: Tensor) -> None:
    rows, cols = torch.tensor([3, 17, 4]), torch.tensor([0, 19])
    scores = TaylorScores(M, N, within=Partition.block(M, N, rows, cols))
    x, g, G = pass_of(0)
    scores.observe(x, g, weight)
    importance = (weight * G).abs()
    torch.testing.assert_close(scores.rows, importance[:, cols].sum(1))
    torch.testing.assert_close(scores.cols, importance[rows].sum(0))
    torch.testing.assert_close(scores.total, importance.sum())
    torch.testing.assert_close(scores.inside, importance[rows[:, None], cols].sum())
    assert scores.inside_share == pytest.approx(float(importance[rows[:, None], cols].sum() / importance.sum()))


def test_taylor_scores_over_more_than_one_band_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taylor, "CACHED_BAND", 10 * N)
    m = 2 * band_rows(N, "cpu") + 3
    assert m == 23
    x, g, G = pass_of(0, m=m)
    weight = torch.randn(m, N, dtype=torch.float64)
    scores = TaylorScores(m, N)
    scores.observe(x, g, weight)
    torch.testing.assert_close(scores.rows, (weight * G).abs().sum(1))
    torch.testing.assert_close(scores.cols, (weight * G).abs().sum(0))


def test_taylor_scores_of_bfloat16_are_those_of_the_rounded_gradient(weight: Tensor) -> None:
    x, g, _ = pass_of(0)
    x, g, weight = x.bfloat16(), g.bfloat16(), weight.bfloat16()
    scores = TaylorScores(M, N)
    scores.observe(x, g, weight)
    importance = (weight.double() * (g.T @ x).double()).abs()  # what a weight's own .grad would hold
    torch.testing.assert_close(scores.rows, importance.sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(scores.cols, importance.sum(0), rtol=1e-6, atol=0)
    exact = (weight.double() * (g.double().T @ x.double())).abs()
    torch.testing.assert_close(scores.rows, exact.sum(1), rtol=2**-8, atol=0)


def test_float16_products_that_would_overflow_are_formed_in_float32() -> None:
    x, g = torch.full((4, 3), 200.0).half(), torch.full((4, 2), 200.0).half()
    scores = TaylorScores(2, 3)
    scores.observe(x, g, torch.ones(2, 3).half())
    assert scores.total == 6 * 4 * 200.0**2  # each entry 160,000, beyond float16


def test_no_importance_at_all_is_a_share_of_zero() -> None:
    scores = TaylorScores(2, 3)
    scores.observe(torch.zeros(4, 3), torch.zeros(4, 2), torch.ones(2, 3))
    assert scores.inside_share == 0.0
