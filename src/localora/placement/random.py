"""Placements that look at no data: the controls that show what a planner is worth."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from localora.placement.budget import LocalShape
from localora.placement.partition import LABEL_DTYPE, UNCOVERED, Partition


def contiguous_partition(m: int, n: int, shape: LocalShape) -> Partition:
    """The first m' rows and n' columns, cut into K equal runs."""
    rows, cols = _run_labels(m, shape.rows, shape.clusters), _run_labels(n, shape.cols, shape.clusters)
    return Partition.from_labels(rows.clone(), cols.clone(), shape.clusters)


def random_partition(m: int, n: int, shape: LocalShape, seed: int) -> Partition:
    """The contiguous partition with rows and columns shuffled; the same for the same seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    rows = _run_labels(m, shape.rows, shape.clusters)[torch.randperm(m, generator=generator, device="cpu")]
    cols = _run_labels(n, shape.cols, shape.clusters)[torch.randperm(n, generator=generator, device="cpu")]
    return Partition.from_labels(rows, cols, shape.clusters)


@cache  # a model has hundreds of layers of a few shapes
def _run_labels(size: int, covered: int, clusters: int) -> Tensor:
    labels = torch.full((size,), UNCOVERED, dtype=LABEL_DTYPE, device="cpu")
    labels[:covered] = (torch.arange(covered, device="cpu") * clusters // covered).to(LABEL_DTYPE)
    return labels
