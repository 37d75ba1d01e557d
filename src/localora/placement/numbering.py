"""Which number a cluster has: that of its first mention, or the one it had before.

Shape legend
    m, n   rows and columns      K   clusters
"""

from __future__ import annotations

import torch
from torch import Tensor

from localora.placement.assignment import assign
from localora.placement.partition import Partition


def number_by_first_mention(rows: Tensor, cols: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Cluster numbers in the order in which the rows, then the columns, first mention them."""
    both = torch.cat([rows, cols])
    first = torch.full((clusters,), len(both)).scatter_reduce(0, both, torch.arange(len(both)), "amin")
    number = first.argsort(stable=True).argsort()
    return number[rows], number[cols]


def number_like(start: Partition, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    """Cluster numbers that leave the most rows and columns with the label they have in `start`.

    A number stands for trained factors: renumbering would look like moving every row and column.
    """
    old, new = torch.cat([start.row_labels, start.col_labels]).long(), torch.cat([rows, cols])
    shared = torch.bincount(old * start.clusters + new, minlength=start.clusters**2)
    number = assign(shared.view(start.clusters, start.clusters).double(), 1, 1)
    return number[rows], number[cols]
