"""Energies and correlations of a partition equal dense oracles."""

import pytest
import torch
from dense_blocks import dense, sides
from hypothesis import given, settings
from hypothesis import strategies as st

from localora.placement.captured import captured_energy, subspace_correlation, unit_svd
from localora.placement.partition import Partition

F64 = torch.float64


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_captured_energy_equals_dense_svd(seed: int, clusters: int, rank: int, q: int) -> None:
    g = torch.Generator().manual_seed(seed)
    left, right = torch.randn(13, q, generator=g, dtype=F64), torch.randn(q, 17, generator=g, dtype=F64)
    labels = [torch.randint(-1, clusters, (size,), generator=g) for size in (13, 17)]
    partition = Partition.from_labels(*labels, clusters)
    M = left @ right
    captured = sum(
        torch.linalg.svdvals(M[R][:, C])[:rank].square().sum() for R, C in sides(M, partition) if len(R) and len(C)
    )
    expected = float(captured / M.square().sum())
    assert captured_energy(left, right, partition, rank) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_subspace_correlation_equals_dense_svd(rank: int) -> None:
    g = torch.Generator().manual_seed(5)
    M = torch.randn(21, 5, generator=g, dtype=F64) @ torch.randn(5, 18, generator=g, dtype=F64)
    partition = Partition.from_labels(torch.arange(21) % 4 - 1, torch.arange(18) // 4 - 1, 4)
    M[partition.row_labels == 2] = M[8].clone()  # one row group of rank 1; row group 3 and column group -1 do not count
    groups = [[M[R] for R, _ in sides(M, partition) if len(R)], [M[:, C].T for _, C in sides(M, partition)]]
    by_side = []
    for blocks in groups:
        bases = []
        for block in blocks:
            _, s, vt = torch.linalg.svd(block, full_matrices=False)
            bases.append(vt[:rank][s[:rank] > 1e-8])
        pairs = [float((a @ b.T).square().sum() / min(len(a), len(b))) for i, a in enumerate(bases) for b in bases[:i]]
        by_side.append(sum(pairs) / len(pairs))
    expected = sum(by_side) / 2
    assert 0.05 < expected < 1
    assert subspace_correlation(*unit_svd(*dense(M)), partition, rank) == pytest.approx(expected, abs=1e-10)


def test_subspace_correlation_ends() -> None:
    M = torch.ones(6, 8)
    halves = Partition.from_labels(torch.arange(6) // 3, torch.arange(8) // 4, 2)
    assert subspace_correlation(*unit_svd(*dense(M)), halves, 2) == pytest.approx(1.0)
    assert subspace_correlation(*unit_svd(*dense(M)), Partition.whole(6, 8), 2) == 0.0
