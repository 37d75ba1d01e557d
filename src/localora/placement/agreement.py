"""How far two labellings agree, and one numbering for both.

Shape legend
    N   labelled rows or columns      K, L   clusters of the first and the second labelling
    C   (K, L) contingency table: C[k, l] = how many carry label k in the first and l in the second
"""

from __future__ import annotations

import torch
from torch import Tensor

from localora.placement.assignment import assign
from localora.placement.partition import Partition, PlacementError


def contingency(a: Tensor, b: Tensor) -> Tensor:
    """The `(K, L)` int64 table of how often each pair of labels meets; labels in ascending order.

    Raises:
        PlacementError: the labellings are not integer vectors of one length.
    """
    for labels in (a, b):
        if labels.ndim != 1 or labels.dtype.is_floating_point or labels.dtype.is_complex:
            raise PlacementError(
                f"labels must be vectors of integers, got {labels.dtype} of shape {tuple(labels.shape)}"
            )
    if len(a) != len(b):
        raise PlacementError(f"labellings of one matrix side have one length, got {len(a)} and {len(b)}")
    _, a_index = a.detach().cpu().long().unique(return_inverse=True)
    _, b_index = b.detach().cpu().long().unique(return_inverse=True)
    if len(a) == 0:
        return torch.zeros(0, 0, dtype=torch.int64)
    K, L = int(a_index.max()) + 1, int(b_index.max()) + 1
    return torch.bincount(a_index * L + b_index, minlength=K * L).view(K, L)


def adjusted_rand_index(a: Tensor, b: Tensor) -> float:
    """The adjusted Rand index of two labellings: 1 = the same up to numbering, 0 = the expectation of chance.

        (pairs(C) - E) / ((pairs(a) + pairs(b)) / 2 - E),   E = pairs(a) pairs(b) / pairs(N)

    with a_k, b_l the row and column sums of the contingency table C and pairs(x) = sum x (x - 1) / 2 (Hubert and
    Arabie, 1985). Two labellings that leave no choice (each all one cluster, or each all singletons; also fewer
    than two elements) agree: 1.0.

    Raises:
        PlacementError: the labellings are not integer vectors of one length.
    """
    table = contingency(a, b).double()
    together, in_a, in_b, in_all = (_pairs(x) for x in (table, table.sum(1), table.sum(0), table.sum()))
    chance = in_a * in_b / in_all if in_all > 0 else in_all
    best = (in_a + in_b) / 2
    return 1.0 if best == chance else float((together - chance) / (best - chance))


def _pairs(count: Tensor) -> Tensor:
    return (count * (count - 1) / 2).sum()


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
