"""Small pictures of |dW|, as it is and with rows and columns sorted by cluster.

Shape legend
    m, n  rows and columns of dW        a, b  rows and columns of the picture, at most PIXELS
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from localora.placement.partition import UNCOVERED, Partition

PIXELS = 192


@dataclass(frozen=True)
class Thumbnails:
    """Root mean squares of dW over tiles, `(a, b)` float32, and where the clusters end in the sorted one."""

    original: Tensor
    reordered: Tensor
    row_edges: tuple[int, ...]
    col_edges: tuple[int, ...]
    clusters: int


def draw_thumbnails(M_mn: Tensor, partition: Partition) -> Thumbnails:
    """Average away what a picture cannot show, before and after sorting rows and columns by cluster."""
    rows, cols = by_cluster(partition.row_labels), by_cluster(partition.col_labels)
    row_edges = tuple(torch.tensor(partition.row_sizes).cumsum(0).tolist())
    col_edges = tuple(torch.tensor(partition.col_sizes).cumsum(0).tolist())
    return Thumbnails(pooled(M_mn), pooled(M_mn[rows][:, cols]), row_edges, col_edges, partition.clusters)


def pooled(M_mn: Tensor) -> Tensor:
    """Root mean square of each tile of an even grid; neighbours may share a row or column."""
    tiles = min(len(M_mn), PIXELS), min(M_mn.shape[1], PIXELS)
    return adaptive_avg_pool2d(M_mn.detach().float().square()[None], tiles)[0].sqrt()


def by_cluster(labels: Tensor) -> Tensor:
    """The order that sorts labels, what is not covered last."""
    return torch.argsort(torch.where(labels == UNCOVERED, 127, labels), stable=True)
