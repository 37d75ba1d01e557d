"""Partitions and placements: what they say, what they refuse, and that files give back what was saved."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from localora.placement.partition import LABEL_DTYPE, MAX_CLUSTERS, UNPLACED, Partition, Placement, PlacementError

ROWS, COLS = [0, -1, 1, 1], [1, 0, -1]


def test_mask_sizes_and_labels() -> None:
    partition = Partition.from_labels(ROWS, torch.tensor(COLS), 2)
    expected = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    assert torch.equal(partition.mask(), expected)
    assert (partition.m, partition.n, partition.covered_rows, partition.covered_cols) == (4, 3, 3, 2)
    assert (partition.row_sizes, partition.col_sizes) == ((1, 2), (1, 1))
    assert partition.row_labels.dtype == LABEL_DTYPE
    assert partition.row_labels.tolist() == ROWS
    assert partition.col_labels.tolist() == COLS


def test_an_empty_cluster_is_counted() -> None:
    assert Partition.from_labels([2, 0], [2, 2], 4).row_sizes == (1, 0, 1, 0)


def test_immutable_equal_by_contents_and_hashable() -> None:
    labels = torch.tensor(ROWS)
    partition = Partition.from_labels(labels, COLS, 2)
    labels.fill_(0)
    partition.row_labels.fill_(0)
    assert partition.row_labels.tolist() == ROWS
    assert partition == Partition.from_labels(torch.tensor(ROWS, dtype=torch.int8), COLS, 2)
    assert len({partition, Partition.from_labels(ROWS, COLS, 2), Partition.from_labels(ROWS, COLS, 3)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        partition.clusters = 3


def test_labels_of_a_view_are_read_in_order() -> None:
    strided = torch.tensor([[0, 9], [1, 9], [-1, 9]])[:, 0]
    assert Partition.from_labels(strided, strided, 2).row_labels.tolist() == [0, 1, -1]


def test_whole_is_lora_and_block_is_g_lora() -> None:
    assert Partition.whole(3, 5).mask().all()
    block = Partition.block(4, 3, torch.tensor([2, 0]), torch.tensor([1]))
    assert block.row_labels.tolist() == [0, -1, 0, -1]
    assert block.col_labels.tolist() == [-1, 0, -1]


@pytest.mark.parametrize(
    ("rows", "clusters", "message"),
    [
        ([0, 2], 2, r"row labels must lie in -1\.\.1, got 0\.\.2"),
        ([-3, 0], 2, r"row labels must lie in -1\.\.1, got -3\.\.0"),
        ([UNPLACED, UNPLACED], 2, r"still unplaced.*localora\.calibrate"),
        ([0.0, 1.0], 2, r"row labels must be integers, got torch\.float32"),
        ([True, False], 2, r"row labels must be integers, got torch\.bool"),
        ([[0, 1]], 2, r"row labels must be a non-empty vector, got shape \(1, 2\)"),
        (torch.zeros(0, dtype=torch.int8), 2, r"non-empty vector"),
        ([0, 0], 0, rf"clusters must lie in 1\.\.{MAX_CLUSTERS}, got 0"),
        ([0, 0], 128, r"clusters must lie in 1\.\.127, got 128"),
        ([0, 300], 2, r"got 0\.\.300"),  # 300 would wrap around in a byte
    ],
)
def test_bad_labels(rows: object, clusters: int, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        Partition.from_labels(rows, [*COLS[:1], 0], clusters)


def test_columns_are_checked_too() -> None:
    with pytest.raises(PlacementError, match=r"column labels must lie in -1\.\.1, got 5\.\.5"):
        Partition.from_labels([0], [5], 2)


def test_placement_needs_one_matrix() -> None:
    with pytest.raises(PlacementError, match="at least one partition"):
        Placement(())
    with pytest.raises(PlacementError, match=r"label one matrix, got shapes \[\(2, 3\), \(3, 2\)\]"):
        Placement((Partition.whole(2, 3), Partition.whole(3, 2)))
