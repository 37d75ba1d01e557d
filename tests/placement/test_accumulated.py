"""The summed gradient, raw and as Adam would divide it, against dense G_t; whole tensors in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from localora.placement.accumulated import AccumulatedGradient

M, N, WIDTH, STEPS = 48, 40, 40, 5  # as wide as the matrix: factors are exact


def micro_batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Two (x, g) of one step, with rows and columns of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = 10.0 ** torch.linspace(-2, 2, M), 10.0 ** torch.linspace(1, -1, N)
    draw = [(torch.randn(60, N, generator=generator), torch.randn(60, M, generator=generator)) for _ in range(2)]
    return [((x * cols).double(), (g * rows).double()) for x, g in draw]


def accumulated(normalise: bool, steps: int = STEPS) -> tuple[AccumulatedGradient, Tensor]:
    """Ours, and the dense G_t `(t, m, n)`."""
    ours = AccumulatedGradient(M, N, WIDTH, seed=3, normalise=normalise)
    gradients = []
    for step in range(steps):
        pairs = micro_batches(step)
        for x, g in pairs:
            ours.observe(x, g)
        ours.end_step()
        gradients.append(sum((g.T @ x for x, g in pairs), torch.zeros(M, N, dtype=torch.float64)))
    return ours, torch.stack(gradients)


def unit(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm()


def test_raw_is_the_sum_over_steps() -> None:
    ours, G = accumulated(normalise=False)
    left, right = ours.factors()
    torch.testing.assert_close(unit(left @ right), unit(G.sum(0)), rtol=0, atol=1e-8)
    assert ours.batches == 2 * STEPS


def test_normalised_is_divided_by_the_root_of_the_factored_second_moment() -> None:
    ours, G = accumulated(normalise=True)
    omega, psi = ours.total._omega(), ours.total._psi()
    R, C = (G @ omega).square().sum((0, 2)), (psi @ G).square().sum((0, 1))  # squares of steps, not of micro-batches
    torch.testing.assert_close(ours.row_squares, R)
    torch.testing.assert_close(ours.col_squares, C)
    left, right = ours.factors()
    torch.testing.assert_close(unit(left @ right), unit(G.sum(0) / torch.outer(R, C).sqrt()), rtol=0, atol=1e-8)
    assert ours.batches == 2 * STEPS


def test_the_sketches_squares_are_near_those_of_the_gradient() -> None:
    """A row of Y is s Gaussian combinations: its square errs by sqrt(2 / s) = 22 % a step, less over several."""
    ours, G = accumulated(normalise=True)
    for sketched, exact in ((ours.row_squares, G.square().sum((0, 2))), (ours.col_squares, G.square().sum((0, 1)))):
        ratio = sketched / exact
        ratio = ratio / ratio.mean()
        assert exact.max() / exact.min() > 1e3
        assert ratio.min() > 0.6
        assert ratio.max() < 1.5


def test_division_makes_small_rows_and_columns_count() -> None:
    """With G_t = +-1 scaled by row and column, the quotient is the bare matrix of signs, as Adam's step would be."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (M, N), generator=generator).double() * 2 - 1
    scaled = signs * torch.logspace(-3, 3, M).double()[:, None] * torch.logspace(2, -2, N).double()
    ours = AccumulatedGradient(M, N, WIDTH, seed=0, normalise=True)
    for _ in range(3):
        ours.observe(torch.eye(N, dtype=torch.float64), scaled.T)
        ours.end_step()
    left, right = ours.factors()
    found = unit(left @ right)
    assert torch.equal(found.sign(), signs)
    assert float((found * unit(signs)).sum()) > 0.95
    assert float((unit(scaled) * unit(signs)).sum()) < 0.3


def test_a_row_without_gradient_stays_zero() -> None:
    ours = AccumulatedGradient(M, N, 8, seed=0, normalise=True)
    x, g = micro_batches(0)[0]
    g[:, 3] = 0
    x[:, 5] = 0
    ours.observe(x, g)
    ours.end_step()
    left, right = ours.factors()
    product = left @ right
    assert product.isfinite().all()
    assert product[3].abs().max() < 1e-6 * product.abs().max()
    assert product[:, 5].abs().max() < 1e-6 * product.abs().max()
    nothing = AccumulatedGradient(M, N, 8, seed=0, normalise=True)
    left, right = nothing.factors()
    assert torch.equal(left @ right, torch.zeros(M, N, dtype=torch.float64))


@pytest.mark.parametrize("normalise", [False, True])
def test_a_saved_state_goes_on_to_the_last_bit(normalise: bool) -> None:
    whole, _ = accumulated(normalise)
    half, _ = accumulated(normalise, steps=2)
    again = AccumulatedGradient(M, N, WIDTH, seed=3, normalise=normalise)
    again.load_state_dict({key: tensor.clone() for key, tensor in half.state_dict().items()})
    for step in range(2, STEPS):
        for x, g in micro_batches(step):
            again.observe(x, g)
        again.end_step()
    assert again.batches == whole.batches
    assert again.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in again.state_dict().items())
