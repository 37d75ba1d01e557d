"""Signals equal what a real weight.grad gives, whole tensors in float64. On whole models: lifecycle/test_observe.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from localora.placement import signals
from localora.placement.partition import Partition
from localora.placement.signals import GradientSketch, TaylorScores, band_rows

M, N, T, WIDTH = 30, 20, 50, 6


def pass_of(seed: int, m: int = M, n: int = N, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(x, g, G) of a linear layer, with G from autograd on a real weight; `rank` limits the rank of G."""
    generator = torch.Generator().manual_seed(seed)
    tokens = rank or T
    x = torch.randn(tokens, n, generator=generator, dtype=torch.float64)
    weight = torch.randn(m, n, generator=generator, dtype=torch.float64, requires_grad=True)
    y = x @ weight.T
    y.retain_grad()
    (torch.tanh(y) * torch.randn(tokens, m, generator=generator, dtype=torch.float64)).sum().backward()
    assert y.grad is not None
    assert weight.grad is not None
    return x, y.grad, weight.grad


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
    monkeypatch.setattr(signals, "CACHED_BAND", 10 * N)
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


def test_sketch_is_the_projected_sum_of_gradients() -> None:
    sketch = GradientSketch(M, N, WIDTH, seed=5)
    total = torch.zeros(M, N, dtype=torch.float64)
    for seed in range(3):
        x, g, G = pass_of(seed)
        sketch.observe(x, g)
        total += G
    omega, psi = sketch._omega(), sketch._psi()
    assert omega.shape == (N, WIDTH)
    assert psi.shape == (2 * WIDTH + 1, M)
    torch.testing.assert_close(sketch.Y.double(), total @ omega)
    torch.testing.assert_close(sketch.Z.double(), psi @ total)


@pytest.mark.parametrize("rank", [1, WIDTH])
def test_sketch_factors_are_exact_up_to_its_width(rank: int) -> None:
    x, g, G = pass_of(0, rank=rank)
    sketch = GradientSketch(M, N, WIDTH, seed=0)
    sketch.observe(x, g)
    left, right = sketch.factors()
    assert (left.shape, right.shape) == ((M, WIDTH), (WIDTH, N))
    torch.testing.assert_close(left.T @ left, torch.eye(WIDTH, dtype=torch.float64))
    torch.testing.assert_close(left @ right, G, rtol=1e-9, atol=1e-11)


def test_sketch_of_a_full_rank_gradient_is_near_its_best_approximation() -> None:
    _, _, G = pass_of(0)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    G = (U * 2.0 ** -torch.arange(N)) @ Vh  # decaying spectrum, as of a language model's gradient
    sketch = GradientSketch(M, N, WIDTH, seed=0)
    sketch.observe(G, torch.eye(M, dtype=torch.float64))
    left, right = sketch.factors()
    best = torch.linalg.svdvals(G)[WIDTH:].norm()
    assert (left @ right - G).norm() < 10 * best
    assert (left @ right - G).norm() >= best


def test_sketch_of_nothing_and_of_a_narrow_matrix() -> None:
    sketch = GradientSketch(4, 3, 64, seed=0)
    assert sketch.width == 3
    sketch.observe(torch.zeros(5, 3), torch.zeros(5, 4))
    left, right = sketch.factors()
    assert torch.equal(left @ right, torch.zeros(4, 3, dtype=torch.float64))


def test_sketch_depends_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (GradientSketch(M, N, WIDTH, seed=seed)._omega() for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    Omega, Psi = GradientSketch(M, N, WIDTH, seed=1)._omega(), GradientSketch(M, N, WIDTH, seed=1)._psi()
    few = min(Omega.numel(), Psi.numel())
    drawn = torch.stack([Omega.flatten()[:few], Psi.flatten()[:few]])
    assert torch.corrcoef(drawn)[0, 1].abs() < 0.5  # of one stream they would be the same numbers up to a scale
