"""Spectra and captured energies against dense numpy, for both forms of a matrix."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from planted import clustered

from localora.lab.inspect.captured import global_local_energy, grid_energy, lora_energy, partition_energy
from localora.lab.inspect.leading import all_singular_values, leading_energy, leading_svd
from localora.lab.inspect.matrix import Dense, Factors, Matrix, effective_rank, stable_rank
from localora.placement.budget import LocalShape, global_local_budget
from localora.placement.captured import captured_energy
from localora.placement.random import random_partition

FORMS = ("factors", "dense", "tall dense")


def build(form: str) -> tuple[Matrix, np.ndarray]:
    generator = torch.Generator().manual_seed(3)
    left = torch.randn(48, 20, generator=generator, dtype=torch.float64) * torch.linspace(1, 0.1, 20)
    right = torch.randn(20, 32, generator=generator, dtype=torch.float64)
    M = left @ right
    if form == "factors":
        return Factors(left, right), M.numpy()
    noisy = M + 0.3 * torch.randn(48, 32, generator=generator, dtype=torch.float64)
    noisy = noisy if form == "tall dense" else noisy.T.contiguous()
    return Dense(noisy), noisy.numpy()


def top(M: np.ndarray, k: int) -> float:
    return float((np.linalg.svd(M, compute_uv=False)[:k] ** 2).sum())


@pytest.mark.parametrize("form", FORMS)
def test_basic_figures(form: str) -> None:
    matrix, M = build(form)
    s = np.linalg.svd(M, compute_uv=False)
    s = s[s > 1e-12 * s[0]]
    np.testing.assert_allclose(matrix.singular_values().numpy(), s, rtol=1e-9)
    np.testing.assert_allclose(matrix.energy(), (M**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(matrix.row_energy().numpy(), (M**2).sum(1), rtol=1e-10)
    np.testing.assert_allclose(matrix.col_energy().numpy(), (M**2).sum(0), rtol=1e-10)
    np.testing.assert_allclose(matrix.dense().numpy(), M, rtol=1e-5, atol=1e-5)
    U, top_s, V = matrix.leading(5)
    u, full_s, vt = np.linalg.svd(M, full_matrices=False)
    np.testing.assert_allclose((U * top_s @ V.T).numpy(), (u[:, :5] * full_s[:5]) @ vt[:5], atol=1e-9)
    np.testing.assert_allclose(stable_rank(matrix.singular_values()), (M**2).sum() / s[0] ** 2, rtol=1e-9)
    p = s / s.sum()
    np.testing.assert_allclose(effective_rank(matrix.singular_values()), np.exp(-(p * np.log(p)).sum()), rtol=1e-9)


def test_effective_rank_counts_equal_values() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert stable_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.zeros(4)) == 0
    assert stable_rank(torch.empty(0)) == 0


@pytest.mark.parametrize("form", FORMS)
def test_captured_energies(form: str) -> None:
    matrix, M = build(form)
    m, n = M.shape
    total = (M**2).sum()
    assert lora_energy(matrix, 4) == pytest.approx(top(M, 4) / total, rel=1e-9)

    partition = random_partition(m, n, LocalShape(3, 4, m, n), seed=1)
    rows, cols = partition.row_labels.numpy(), partition.col_labels.numpy()
    blocks = sum(top(M[np.ix_(rows == k, cols == k)], 4) for k in range(3))
    assert partition_energy(matrix, partition, 4) == pytest.approx(blocks / total, rel=1e-9)

    pieces = product(np.array_split(np.arange(m), 2), np.array_split(np.arange(n), 2))
    assert grid_energy(matrix, 2, 4) == pytest.approx(sum(top(M[np.ix_(*p)], 2) for p in pieces) / total, rel=1e-9)
    assert grid_energy(matrix, 3, 4) is None


def test_partition_energy_is_the_planners() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    right = torch.randn(12, 50, generator=generator, dtype=torch.float64)
    partition = random_partition(40, 50, LocalShape(4, 2, 40, 50), seed=0)
    mine = partition_energy(Factors(left, right), partition, 2)
    assert mine == pytest.approx(captured_energy(left, right, partition, 2), rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_g_lora_energy_is_reached_and_is_no_local_failure(form: str) -> None:
    """Gradient descent on the two terms of the same block, from many starts, does not find more."""
    matrix, M_np = build(form)
    M = torch.tensor(M_np)
    m, n = M.shape
    budget = global_local_budget(m, n, 4, 0.5, 0.25)
    assert budget.local is not None
    found = global_local_energy(matrix, 4)
    assert found is not None
    assert found > lora_energy(matrix, budget.global_rank)
    rows = torch.argsort(M.square().sum(1), descending=True)[: budget.local.rows]
    cols = torch.argsort(M.square().sum(0), descending=True)[: budget.local.cols]
    best = 0.0
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        shapes = ((m, 2), (2, n), (len(rows), budget.local.rank), (budget.local.rank, len(cols)))
        terms = [(0.3 * torch.randn(shape, generator=g, dtype=torch.float64)).requires_grad_() for shape in shapes]
        optimizer = torch.optim.LBFGS(terms, max_iter=300, line_search_fn="strong_wolfe")

        def loss(terms: list[torch.Tensor] = terms, optimizer: torch.optim.LBFGS = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            local = torch.zeros(m, n, dtype=torch.float64).index_put((rows[:, None], cols), terms[2] @ terms[3])
            error = (M - terms[0] @ terms[1] - local).square().sum() / M.square().sum()
            error.backward()
            return error

        optimizer.step(loss)
        best = max(best, 1 - float(loss().detach()))
    assert found == pytest.approx(best, abs=2e-3)


def test_g_lora_that_does_not_fit_is_none() -> None:
    assert global_local_energy(Dense(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))), 5) is None


def test_large_matrices_take_the_iterative_path(monkeypatch: pytest.MonkeyPatch) -> None:
    M, _, _ = clustered(150, 120, 3, 4)
    M = (M + 0.5 * torch.randn(150, 120, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).float()
    exact = leading_svd(M, 12)
    values = all_singular_values(M)
    monkeypatch.setattr("localora.lab.inspect.leading.EXACT_SIDE", 16)
    U, s, V = leading_svd(M, 12)
    torch.testing.assert_close(s, exact[1], rtol=1e-4, atol=0.0)
    torch.testing.assert_close(U.T @ U, torch.eye(12, dtype=torch.float64), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(V.T @ V, torch.eye(12, dtype=torch.float64), atol=1e-5, rtol=0.0)
    assert leading_energy(M, 12) == pytest.approx(float(exact[1].square().sum()), rel=1e-4)
    torch.testing.assert_close(all_singular_values(M), values, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rank", [8, 150])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e3])
def test_iteration_finds_the_same_of_a_small_update_as_of_a_large_one(
    monkeypatch: pytest.MonkeyPatch, rank: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(2)
    M = torch.randn(150, rank, generator=generator) @ torch.randn(rank, 200, generator=generator) * scale
    exact = float(torch.linalg.svdvals(M.double())[:8].square().sum())
    monkeypatch.setattr("localora.lab.inspect.leading.EXACT_SIDE", 16)
    assert leading_energy(M, 8) == pytest.approx(exact, rel=5e-3)


def test_iteration_on_a_matrix_of_lower_rank_counts_no_direction_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    M, _, _ = clustered(150, 120, 2, 2)
    monkeypatch.setattr("localora.lab.inspect.leading.EXACT_SIDE", 16)
    assert leading_energy(M, 10) == pytest.approx(float(M.square().sum()), rel=1e-9)
