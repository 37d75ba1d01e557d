"""Placements that look at no data: sizes as the budget says, the same for the same seed."""

from __future__ import annotations

import torch

from localora.placement.budget import LocalShape
from localora.placement.random import contiguous_partition, random_partition

SHAPE = LocalShape(clusters=3, rank=2, rows=7, cols=5)


def test_contiguous_runs() -> None:
    partition = contiguous_partition(9, 5, SHAPE)
    assert partition.row_labels.tolist() == [0, 0, 0, 1, 1, 2, 2, -1, -1]
    assert partition.col_labels.tolist() == [0, 0, 1, 1, 2]


def test_random_is_a_shuffle_that_the_seed_decides() -> None:
    shape = LocalShape(clusters=4, rank=2, rows=90, cols=50)
    partition = random_partition(120, 60, shape, seed=3)
    contiguous = contiguous_partition(120, 60, shape)
    assert (partition.row_sizes, partition.col_sizes) == (contiguous.row_sizes, contiguous.col_sizes)
    assert partition == random_partition(120, 60, shape, seed=3)
    assert partition != random_partition(120, 60, shape, seed=4)
    # A shuffle keeps about a quarter of the labels where they were.
    assert (partition.row_labels == contiguous.row_labels).float().mean() < 0.5


def test_random_does_not_touch_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    random_partition(20, 10, SHAPE, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
