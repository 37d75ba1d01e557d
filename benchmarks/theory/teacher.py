"""Teachers whose update is block-structured, more or less, and the best any student could do on them.

Shape legend
    m, n     rows and columns of the update D      K   blocks
    q        singular directions a block has       r   rank of a student (of each cluster's term)
    U (m, K q), V (n, K q)   orthonormal           s   (q,), the same for every block

    D = U diag(s, ..., s) V^T, with rows and columns shuffled

At overlap 0 the bases of the blocks do not overlap: block k's columns of U live on its own rows, those of V on its own
columns. The dial mixes them with dense orthonormal bases and orthonormalises the result, so that the singular values
of D, and with them all that plain LoRA can do, are the same at every overlap. At 1 nothing is left of the blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from localora import Partition

DIRECTIONS = 12  # q
DECAY = 0.7  # of one singular value of a block to its next


@dataclass(frozen=True)
class Plant:
    """A planted update.

    Attributes:
        delta: `(m, n)`, of unit Frobenius norm; float64.
        partition: the K blocks it was built from, of equal sizes.
    """

    delta: Tensor
    partition: Partition

    def error(self, delta: Tensor) -> float:
        """||delta - D||_F^2 / ||D||_F^2."""
        return float((delta.double() - self.delta).square().sum())

    def lora_optimum(self, r: int) -> float:
        """The least error of any update of rank r: the tail of D's spectrum."""
        return float(torch.linalg.svdvals(self.delta)[r:].square().sum())

    def cluster_optimum(self, r: int) -> float:
        """The least error of rank-r terms in the planted clusters."""
        captured = 0.0
        for k in range(self.partition.clusters):
            block = self.delta[self.partition.row_labels == k][:, self.partition.col_labels == k]
            captured += float(torch.linalg.svdvals(block)[:r].square().sum())
        return 1 - captured


def plant(m: int, n: int, clusters: int, overlap: float, seed: int) -> Plant:
    """D and its blocks. The same for the same arguments on every machine."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = (_shuffled_labels(size, clusters, generator) for size in (m, n))
    q = min(DIRECTIONS, m // clusters, n // clusters)
    U, V = (_bases(labels, clusters, q, overlap, generator) for labels in (rows, cols))
    s = DECAY ** torch.arange(q, dtype=torch.float64)
    s = (s / s.norm() / math.sqrt(clusters)).repeat(clusters)
    return Plant((U * s) @ V.T, Partition.from_labels(rows, cols, clusters))


def _shuffled_labels(size: int, clusters: int, generator: torch.Generator) -> Tensor:
    labels = torch.arange(size) * clusters // size
    return labels[torch.randperm(size, generator=generator)]


def _bases(labels: Tensor, clusters: int, q: int, overlap: float, generator: torch.Generator) -> Tensor:
    """`(N, K q)` orthonormal: each block's basis on its own elements, mixed with dense ones."""
    N = len(labels)
    own = torch.zeros(N, clusters, q, dtype=torch.float64)
    for k in range(clusters):
        members = (labels == k).nonzero().flatten()
        own[members, k] = _orthonormal(len(members), q, generator)
    dense = _orthonormal(N, clusters * q, generator)
    mixed = math.sqrt(1 - overlap) * own.flatten(1) + math.sqrt(overlap) * dense
    left, _, right = torch.linalg.svd(mixed, full_matrices=False)
    return left @ right  # the nearest orthonormal matrix


def _orthonormal(N: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(N, count, generator=generator, dtype=torch.float64)).Q
