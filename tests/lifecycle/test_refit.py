"""The least-squares fit of what moved, against dense solutions written here."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from moving import swapped
from torch import Tensor

from localora import Partition
from localora.lifecycle import refit as refitting
from localora.lifecycle.refit import ROUNDS, match_clusters, pack, refit, start_new_columns, unpack
from localora.placement.budget import LocalShape
from localora.placement.random import random_partition

m, n, K, r = 24, 20, 3, 3


def random_factors(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(r, n, generator=generator, dtype=torch.float64),
        torch.randn(m, r, generator=generator, dtype=torch.float64),
    )


def random_labels(seed: int) -> Partition:
    return random_partition(m, n, LocalShape(K, r, m, n), seed)


def update(A: Tensor, B: Tensor, partition: Partition) -> Tensor:
    return (B @ A) * partition.mask()


def dense_fit(A: Tensor, B: Tensor, delta: Tensor, old: Partition, new: Partition) -> Tensor:
    """A after one fit of its moved columns, column by column, on the full matrix."""
    A = A.clone()
    for j in (old.col_labels != new.col_labels).nonzero().flatten().tolist():
        rows = new.row_labels == new.col_labels[j]
        step = torch.linalg.lstsq(B[rows], (delta[rows, j] - B[rows] @ A[:, j])[:, None], driver="gelsd").solution
        A[:, j] += step[:, 0]
    return A


@pytest.mark.parametrize("rows_a_cluster", [8, 2])  # more rows than ranks, and fewer: the solution of least change
def test_a_column_is_fitted_to_the_old_update_with_the_rows_fixed(
    rows_a_cluster: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = K * rows_a_cluster
    monkeypatch.setattr(refitting, "ROUNDS", 1)
    A, B = random_factors()
    B = B[:m]
    rows = torch.arange(m) % K
    cols = random_labels(1).col_labels
    old = Partition.from_labels(rows, cols, K)
    new = Partition.from_labels(rows.roll(1), random_labels(2).col_labels, K)
    delta = (B @ A) * old.mask()
    given = A.clone(), B.clone()
    fitted, _ = refit(A, B, old, new)
    assert torch.equal(A, given[0])  # the old factors are read, not written
    assert torch.equal(B, given[1])
    for j in range(n):
        if cols[j] != new.col_labels[j]:
            partners = new.row_labels == new.col_labels[j]
            step = torch.linalg.pinv(B[partners]) @ (delta[partners, j] - B[partners] @ A[:, j])
            torch.testing.assert_close(fitted[:, j], A[:, j] + step)
        else:
            assert torch.equal(fitted[:, j], A[:, j])


@pytest.mark.parametrize("seed", range(4))
def test_columns_and_rows_are_fitted_in_turn(seed: int) -> None:
    A, B = random_factors(seed)
    old, new = random_labels(seed), random_labels(seed + 100)
    delta = update(A, B, old)
    A_dense, B_dense = A, B
    flipped = [Partition.from_labels(p.col_labels, p.row_labels, K) for p in (old, new)]
    for _ in range(ROUNDS):
        A_dense = dense_fit(A_dense, B_dense, delta, old, new)
        B_dense = dense_fit(B_dense.T, A_dense.T, delta.T, *flipped).T
    A_new, B_new = refit(A, B, old, new)
    torch.testing.assert_close(A_new, A_dense)
    torch.testing.assert_close(B_new, B_dense)


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_beats_leaving_the_factors_as_they_were(seed: int) -> None:
    A, B = random_factors(seed)
    old, new = random_labels(seed), swapped(random_labels(seed), 4, 4)
    wanted = update(A, B, old) * new.mask()
    fitted = update(*refit(A, B, old, new), new)
    assert (fitted - wanted).norm() < 0.8 * (update(A, B, new) - wanted).norm()


def test_what_did_not_move_keeps_its_factors_bit_for_bit() -> None:
    A, B = random_factors()
    old = random_labels(0)
    new = swapped(old, 6, 4)
    A_new, B_new = refit(A, B, old, new)
    stayed_rows, stayed_cols = old.row_labels == new.row_labels, old.col_labels == new.col_labels
    assert (int(stayed_rows.sum()), int(stayed_cols.sum())) == (m - 6, n - 4)
    assert torch.equal(A_new[:, stayed_cols], A[:, stayed_cols])
    assert torch.equal(B_new[stayed_rows], B[stayed_rows])
    assert not torch.isclose(A_new[:, ~stayed_cols], A[:, ~stayed_cols]).all(0).any()


def test_rows_and_columns_that_leave_together_keep_their_update_exactly() -> None:
    A, B = random_factors()
    old = Partition.from_labels([0] * m, [0] * n, 2)
    new = Partition.from_labels([0] * 10 + [1] * 14, [0] * 12 + [1] * 8, 2)
    torch.testing.assert_close(update(*refit(A, B, old, new), new), update(A, B, old) * new.mask())


def test_before_any_training_a_stays_and_the_update_stays_zero() -> None:
    A, _ = random_factors()
    B = torch.zeros(m, r, dtype=torch.float64)
    A_new, B_new = refit(A, B, random_labels(0), random_labels(1))
    assert torch.equal(A_new, A)
    assert torch.equal(B_new, B)


def test_float32_factors_are_fitted_in_float64() -> None:
    A, B = (factor.float() for factor in random_factors())
    old, new = random_labels(0), random_labels(1)
    A_new, B_new = refit(A, B, old, new)
    A_wide, B_wide = refit(A.double(), B.double(), old, new)
    assert A_new.dtype == B_new.dtype == torch.float32
    assert torch.equal(A_new, A_wide.float())
    assert torch.equal(B_new, B_wide.float())


# The block of G-LoRA: rows and columns come from, and go to, the uncovered


def block(rows: range, cols: range) -> Partition:
    return Partition.block(m, n, torch.tensor(rows), torch.tensor(cols))


def test_a_block_that_moves_on_keeps_its_update_on_what_stays_and_adds_none() -> None:
    old, new = block(range(12), range(10)), block(range(4, 16), range(3, 13))
    A, B = random_factors()
    A[:, old.col_labels < 0] = 0
    B[old.row_labels < 0] = 0
    A_new, B_new = refit(start_new_columns(A, old, new), B, old, new)
    torch.testing.assert_close(update(A_new, B_new, new), update(A, B, old) * new.mask())
    assert A_new[:, new.col_labels < 0].abs().sum() == 0
    assert B_new[new.row_labels < 0].abs().sum() == 0


def test_a_block_of_only_new_rows_and_columns_can_still_learn() -> None:
    old, new = block(range(8), range(8)), block(range(10, 18), range(10, 18))
    A, B = random_factors()
    A[:, old.col_labels < 0] = 0
    B[old.row_labels < 0] = 0
    A_new, B_new = refit(start_new_columns(A, old, new), B, old, new)
    fresh = A_new[:, new.col_labels >= 0]
    assert B_new.abs().sum() == 0  # so dW is zero, as the old one was there
    assert torch.linalg.matrix_rank(fresh) == r  # and B gets a gradient of full rank
    assert fresh.abs().max() <= 8**-0.5  # from the range that LoRA's A starts in
    assert torch.equal(start_new_columns(A, old, new), start_new_columns(A, old, new))


@pytest.mark.parametrize("dim", [0, 1])
def test_pack_takes_what_unpack_puts(dim: int) -> None:
    labels = torch.tensor([-1, 0, 1, -1, 0], dtype=torch.int8)
    packed = torch.arange(1.0, 7.0).view(2, 3) if dim == 1 else torch.arange(1.0, 7.0).view(3, 2)
    full = unpack(packed, labels, dim)
    expected = torch.tensor([[0.0, 1, 2, 0, 3], [0, 4, 5, 0, 6]])
    assert torch.equal(full, expected if dim == 1 else torch.tensor([[0.0, 0], [1, 2], [3, 4], [0, 0], [5, 6]]))
    assert torch.equal(pack(full, labels, dim), packed)


# Numbering


def kept(a: Partition, b: Partition) -> int:
    same_rows, same_cols = a.row_labels == b.row_labels, a.col_labels == b.col_labels
    return int(same_rows.sum() + same_cols.sum())


def renumbered(partition: Partition, numbers: tuple[int, ...]) -> Partition:
    lookup = torch.tensor([*numbers, -1])
    return Partition.from_labels(
        lookup[partition.row_labels.long()], lookup[partition.col_labels.long()], partition.clusters
    )


@pytest.mark.parametrize("seed", range(12))
def test_numbering_keeps_as_many_labels_as_any_permutation_does(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clusters = 2 + seed % 3
    old, new = (
        Partition.from_labels(
            torch.randint(-1, clusters, (m,), generator=generator),
            torch.randint(-1, clusters, (n,), generator=generator),
            clusters,
        )
        for _ in range(2)
    )
    matched = match_clusters(new, old)
    assert any(renumbered(new, p) == matched for p in permutations(range(clusters)))
    assert kept(matched, old) == max(kept(renumbered(new, p), old) for p in permutations(range(clusters)))


def test_numbering_is_not_greedy() -> None:
    # overlaps 5, 4 / 4, 0: taking the 5 first keeps 5 labels, the other way round 8
    old = Partition.from_labels([0] * 5 + [1] * 4 + [0] * 4, [0], 2)
    new = Partition.from_labels([0] * 9 + [1] * 4, [-1], 2)
    assert match_clusters(new, old).row_labels.tolist() == [1] * 9 + [0] * 4


def test_renumbered_clusters_are_the_same_partition() -> None:
    old = random_labels(0)
    assert match_clusters(renumbered(old, (2, 0, 1)), old) == old
