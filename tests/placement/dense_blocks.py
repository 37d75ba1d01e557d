"""A dense matrix as factors, and its blocks: what energies and correlations are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from localora.placement.partition import Partition


def dense(M: Tensor) -> tuple[Tensor, Tensor]:
    return M, torch.eye(M.shape[1], dtype=M.dtype)


def sides(M: Tensor, partition: Partition) -> list[tuple[Tensor, Tensor]]:
    return [
        ((partition.row_labels == k).nonzero()[:, 0], (partition.col_labels == k).nonzero()[:, 0])
        for k in range(partition.clusters)
    ]
