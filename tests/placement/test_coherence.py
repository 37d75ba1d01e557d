"""The weight of coherence in the planner's objective: of two partitions that capture alike, the uncorrelated one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from localora import CpsLoraConfig, calibrate
from localora.lifecycle import planning
from localora.placement.captured import captured_energy, unit_svd
from localora.placement.captured import subspace_correlation as correlation_of
from localora.placement.coclustering import _alternate, plan_coclusters, size_bounds
from localora.placement.partition import Partition, PlacementError
from tiny_models import tiny_llama, token_batch

F64 = torch.float64
EACH = 10  # rows of a kind, and columns of a side


def kinds_of_rows() -> tuple[Tensor, Partition, Partition]:
    """Rows that read the left columns, the right ones, and twice 0.7 of both; and two partitions of them.

    Both kinds of mixed rows in one cluster, or one in each: either way the clusters capture the same energy, but in
    the second case each cluster's rows have a share of the other's direction.
    """
    left, right = torch.zeros(2 * EACH, dtype=F64), torch.zeros(2 * EACH, dtype=F64)
    left[:EACH] = right[EACH:] = EACH**-0.5
    M = torch.stack([left, right, 0.7 * (left + right), 0.7 * (left + right)]).repeat_interleave(EACH, 0)
    cols = torch.arange(2).repeat_interleave(EACH)

    def partition(*labels: int) -> Partition:
        return Partition.from_labels(torch.tensor(labels).repeat_interleave(EACH), cols, 2)

    return M, partition(0, 1, 0, 0), partition(0, 1, 0, 1)


def test_of_two_partitions_that_capture_the_same_the_uncorrelated_one_is_chosen() -> None:
    M, together, apart = kinds_of_rows()
    factors = M, torch.eye(2 * EACH, dtype=F64)
    energies = [captured_energy(*factors, partition, 1) for partition in (together, apart)]
    assert energies[0] == pytest.approx(energies[1], rel=1e-12)
    assert correlation_of(*unit_svd(*factors), together, 1) == pytest.approx(0.2589, abs=1e-4)
    assert correlation_of(*unit_svd(*factors), apart, 1) == pytest.approx(0.3674, abs=1e-4)

    def plan(coherence: float) -> Partition:
        options = {"clusters": 2, "rank": 1, "balance": 0.0, "start": apart}
        return plan_coclusters(*factors, coherence=coherence, **options).partition

    assert plan(0.0) == apart  # nothing captures more, so there is no reason to leave it
    for coherence in (0.02, 0.3):
        found = plan(coherence)
        assert captured_energy(*factors, found, 1) == pytest.approx(energies[0], rel=1e-12)
        assert correlation_of(*unit_svd(*factors), found, 1) == pytest.approx(0.2589, abs=1e-4)


def dense_objective(M: Tensor, rows: Tensor, cols: Tensor, clusters: int, rank: int, weight: float) -> float:
    def best(block: Tensor) -> float:
        return float(torch.linalg.svdvals(block)[:rank].square().sum()) if block.numel() else 0.0

    captured = sum(best(M[rows == k][:, cols == k]) for k in range(clusters))
    coherence = sum(best(M[rows == k]) + best(M[:, cols == k]) for k in range(clusters)) / 2
    return ((1 - weight) * captured + weight * coherence) / float(M.square().sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_the_objective_equals_its_dense_form_and_never_falls(seed: int, balance: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    m, n, clusters, rank, weight = 30, 24, 3, 2, 0.4
    M = torch.randn(m, 8, generator=generator, dtype=F64) @ torch.randn(8, n, generator=generator, dtype=F64)
    U, s, V = unit_svd(M, torch.eye(n, dtype=F64))
    labels = torch.arange(m) * clusters // m, torch.arange(n) * clusters // n
    bounds = size_bounds(m, clusters, balance), size_bounds(n, clusters, balance)
    run = _alternate(U * s, V, *labels, clusters, rank, *bounds, 30, weight, V * s)
    assert run.energy() == pytest.approx(dense_objective(M, *run.labels, clusters, rank, weight), rel=1e-9)
    steps = torch.tensor(run.energies)
    assert (steps.diff() >= -1e-12).all()
    assert run.energy() > dense_objective(M, *labels, clusters, rank, weight)


@pytest.mark.parametrize("coherence", [-0.1, 1.0])
def test_a_weight_outside_its_range_is_refused(coherence: float) -> None:
    with pytest.raises(PlacementError, match="coherence must lie in 0"):
        plan_coclusters(torch.ones(4, 2), torch.ones(2, 4), clusters=2, rank=1, balance=0.5, coherence=coherence)


def test_the_option_of_the_config_reaches_the_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    real = planning.plan_coclusters

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["coherence"])
        return real(*args, **kwargs)

    monkeypatch.setattr(planning, "plan_coclusters", noting)
    config = CpsLoraConfig(r=2, clusters=2, coherence=0.25, target_modules=["q_proj"])
    model = get_peft_model(tiny_llama(), config)  # type: ignore[arg-type]
    calibrate(model, [token_batch(0)])
    assert set(seen) == {0.25}
