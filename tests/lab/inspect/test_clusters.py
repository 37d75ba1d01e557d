"""The verdict: planted clusters are found; nothing else with the same spectrum is taken for them."""

from __future__ import annotations

import pytest
import torch
from planted import clustered, uneven, without_clusters
from sklearn.metrics import adjusted_rand_score

from localora.lab.inspect.cluster_test import MAX_MISMATCH, ClusterTest, cluster_test
from localora.lab.inspect.matrix import Dense, Factors, Matrix
from localora.lab.inspect.nulls import energy_mismatch, matched, rotated
from localora.placement.coclustering import plan_coclusters


def judge(matrix: Matrix, seed: int = 0) -> ClusterTest:
    return cluster_test(matrix, rank=4, clusters=(4,), draws=2, seed=seed)


def test_planted_clusters_are_found_and_the_same_spectrum_without_them_is_not() -> None:
    M, rows, _ = clustered(96, 128, 4, 3)
    found = judge(Dense(M))
    assert found.verdict == "clusters"
    assert found.excess == pytest.approx(1.0, abs=1e-6)
    assert found.strongest is not None
    assert found.nulls["matched"][f"cps_{found.strongest}"].observed == pytest.approx(1.0)
    U, s, V = torch.linalg.svd(M)
    planned = plan_coclusters(U[:, :12] * s[:12], V[:12], clusters=4, rank=4, balance=1.0)
    assert adjusted_rand_score(planned.partition.row_labels.long(), rows) == 1.0

    random = without_clusters(M)
    torch.testing.assert_close(torch.linalg.svdvals(random)[:12], s[:12])
    refuted = judge(Dense(random))
    assert refuted.verdict == "none"
    assert refuted.excess is not None
    assert abs(refuted.excess) < 0.05


def test_clusters_under_noise_are_found() -> None:
    M, _, _ = clustered(96, 128, 4, 3)
    noise = torch.randn(M.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * M.std()
    found = judge(Dense(M + noise))
    assert found.verdict == "clusters"
    assert found.excess is not None
    assert 0.2 < found.excess < 0.9


def test_unequal_clusters_are_found() -> None:
    g = torch.Generator().manual_seed(0)
    M = torch.zeros(100, 120, dtype=torch.float64)
    M[:24, :30] = torch.randn(24, 4, generator=g, dtype=torch.float64) @ torch.randn(4, 30, generator=g).double()
    M[24:, 30:] = torch.randn(76, 4, generator=g, dtype=torch.float64) @ torch.randn(4, 90, generator=g).double()
    assert judge(Dense(M)).verdict == "clusters"


@pytest.mark.parametrize("seed", [0, 1])
def test_heavy_rows_and_columns_are_not_taken_for_clusters(seed: int) -> None:
    refuted = judge(Dense(uneven(192, 256, 12, seed=seed)))
    assert refuted.verdict == "uneven"
    assert refuted.mismatch <= MAX_MISMATCH


def test_noise_has_no_clusters() -> None:
    assert judge(Dense(torch.randn(96, 128, generator=torch.Generator().manual_seed(2)))).verdict == "none"


def test_what_each_null_keeps() -> None:
    M = uneven(60, 80, 10)
    U, s, V = torch.linalg.svd(M, full_matrices=False)
    U, s, V = U[:, :10], s[:10], V[:10].T
    generator = torch.Generator().manual_seed(0)
    eye = torch.eye(10, dtype=torch.float64)

    for make in (rotated, matched):
        null_U, null_s, null_V = make(U, s, V, generator)
        torch.testing.assert_close(null_s, s)
        torch.testing.assert_close(null_U.T @ null_U, eye, atol=1e-9, rtol=0.0)
        torch.testing.assert_close(null_V.T @ null_V, eye, atol=1e-9, rtol=0.0)
        kept = max(energy_mismatch(U, null_U, s), energy_mismatch(V, null_V, s))
        assert kept <= 0.01 if make is matched else kept > 0.1
        # and it is another matrix: its largest direction has little to do with that of dW
        assert abs(float(null_U[:, 0] @ U[:, 0])) < 0.7


def test_energy_mismatch_counts_moved_energy() -> None:
    s = torch.tensor([1.0], dtype=torch.float64)
    here, there = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[0.0], [1.0]]).double()
    assert energy_mismatch(here, there, s) == 1.0
    assert energy_mismatch(here, here, s) == 0.0


def test_an_unchanged_layer_has_no_figures() -> None:
    result = judge(Factors(torch.zeros(8, 2), torch.zeros(2, 9)))
    assert result.verdict == "unchanged"
    assert result.nulls == {}


def test_the_same_seed_gives_the_same_figures() -> None:
    M = Dense(uneven(20, 24, 5))
    once = judge(M, seed=3)
    assert once == judge(M, seed=3)
    assert once.nulls != judge(M, seed=4).nulls
