"""A sketch equals what a real weight.grad gives, whole tensors in float64. On models: lifecycle/test_observe.py."""

from __future__ import annotations

import pytest
import torch
from linear_pass import M, N, pass_of

from localora.placement.sketch import GradientSketch, gaussian

WIDTH = 6


def test_sketch_is_the_projected_sum_of_gradients() -> None:
    sketch = GradientSketch(M, N, WIDTH, seed=5)
    total = torch.zeros(M, N, dtype=torch.float64)
    for seed in range(3):
        x, g, G = pass_of(seed)
        sketch.observe(x, g)
        total += G
    omega, psi = gaussian(*sketch.omega), gaussian(*sketch.psi)
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
    one, same, other = (gaussian(*GradientSketch(M, N, WIDTH, seed=seed).omega) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    Omega, Psi = (
        gaussian(*GradientSketch(M, N, WIDTH, seed=1).omega),
        gaussian(*GradientSketch(M, N, WIDTH, seed=1).psi),
    )
    few = min(Omega.numel(), Psi.numel())
    drawn = torch.stack([Omega.flatten()[:few], Psi.flatten()[:few]])
    assert torch.corrcoef(drawn)[0, 1].abs() < 0.5  # of one stream they would be the same numbers up to a scale
