"""Partitions and placements: which rows and columns of a weight matrix an adapter covers.

Shape legend
    m   rows of W (outputs)            m'  covered rows of one partition
    n   columns of W (inputs)          n'  covered columns of one partition
    K   clusters of one partition      P   partitions of a placement

A partition gives every row and every column of W a label: a cluster 0..K-1, or UNCOVERED. A row and a column interact
only where their labels agree, so a partition's share of the update is (B @ A) masked to equal labels. A placement is
a stack of partitions whose updates add up:

    LoRA      one partition, all labels 0
    G-LoRA    all labels 0  +  important rows x columns labelled 0, the rest UNCOVERED
    CPS-LoRA  labels 0..K-1 on all rows and columns
    hybrid    all labels 0  +  labels 0..K-1
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localora.errors import LocaloraError

UNCOVERED = -1  # the partition leaves this row or column alone
UNPLACED = -2  # no planner has spoken yet; every label of a fresh adapter
LABEL_DTYPE = torch.int8  # one byte a row and column keeps the adapter file within 7 % of LoRA's at rank 8
MAX_CLUSTERS = torch.iinfo(LABEL_DTYPE).max


class PlacementError(LocaloraError, ValueError):
    """Labels that do not describe a valid partition, or that do not fit the layer they are meant for."""


@dataclass(frozen=True)
class Partition:
    """Labels of the rows and columns of one matrix; immutable, hashable, equal when the labels are.

    The labels are kept as bytes (one int8 each), so that nothing can change them behind a planner's back and equality
    and hashes are those of the contents. Build one with :meth:`from_labels`, :meth:`whole` or :meth:`block`.
    """

    clusters: int
    row_bytes: bytes
    col_bytes: bytes

    @classmethod
    def from_labels(
        cls, row_labels: Tensor | Sequence[int], col_labels: Tensor | Sequence[int], clusters: int
    ) -> Partition:
        """Validate labels `(m,)` and `(n,)` with values -1..clusters-1.

        Raises:
            PlacementError: labels that are not one-dimensional integers, are empty, or lie outside -1..clusters-1.
        """
        if not 1 <= clusters <= MAX_CLUSTERS:
            raise PlacementError(f"clusters must lie in 1..{MAX_CLUSTERS}, got {clusters}")
        rows = _checked_labels(row_labels, clusters, "row")
        cols = _checked_labels(col_labels, clusters, "column")
        return cls(clusters, rows.numpy().tobytes(), cols.numpy().tobytes())

    @classmethod
    def whole(cls, m: int, n: int) -> Partition:
        """The partition of plain LoRA: one cluster that holds every row and column."""
        return cls.from_labels(torch.zeros(m, dtype=LABEL_DTYPE), torch.zeros(n, dtype=LABEL_DTYPE), 1)

    @classmethod
    def block(cls, m: int, n: int, rows: Tensor, cols: Tensor) -> Partition:
        """The local block of G-LoRA: the rows and columns with the given indices, the rest uncovered."""
        row_labels = torch.full((m,), UNCOVERED, dtype=LABEL_DTYPE)
        col_labels = torch.full((n,), UNCOVERED, dtype=LABEL_DTYPE)
        row_labels[rows] = 0
        col_labels[cols] = 0
        return cls.from_labels(row_labels, col_labels, 1)

    @property
    def row_labels(self) -> Tensor:
        """A fresh `(m,)` int8 tensor of row labels."""
        return torch.frombuffer(bytearray(self.row_bytes), dtype=LABEL_DTYPE)

    @property
    def col_labels(self) -> Tensor:
        """A fresh `(n,)` int8 tensor of column labels."""
        return torch.frombuffer(bytearray(self.col_bytes), dtype=LABEL_DTYPE)

    @property
    def m(self) -> int:
        return len(self.row_bytes)

    @property
    def n(self) -> int:
        return len(self.col_bytes)

    @property
    def covered_rows(self) -> int:
        """m', the number of rows with a cluster."""
        return int((self.row_labels >= 0).sum())

    @property
    def covered_cols(self) -> int:
        """n', the number of columns with a cluster."""
        return int((self.col_labels >= 0).sum())

    @property
    def row_sizes(self) -> tuple[int, ...]:
        """Rows in each cluster, length K."""
        return tuple(torch.bincount(self.row_labels[self.row_labels >= 0].long(), minlength=self.clusters).tolist())

    @property
    def col_sizes(self) -> tuple[int, ...]:
        """Columns in each cluster, length K."""
        return tuple(torch.bincount(self.col_labels[self.col_labels >= 0].long(), minlength=self.clusters).tolist())

    def mask(self) -> Tensor:
        """The `(m, n)` boolean matrix of entries this partition may change. For tests and pictures: it is dense."""
        rows, cols = self.row_labels[:, None], self.col_labels[None, :]
        return (rows == cols) & (rows >= 0)


@dataclass(frozen=True)
class Placement:
    """The stack of partitions of one layer. All of them label the same m x n matrix."""

    partitions: tuple[Partition, ...]

    def __post_init__(self) -> None:
        if not self.partitions:
            raise PlacementError("a placement needs at least one partition")
        shapes = {(p.m, p.n) for p in self.partitions}
        if len(shapes) > 1:
            raise PlacementError(f"the partitions of a placement must label one matrix, got shapes {sorted(shapes)}")

    @staticmethod
    def digest_of(partitions: Iterable[Partition]) -> str:
        """A hash of all labels, for checking that every process of a distributed run holds the same ones."""
        sha = hashlib.sha256()
        for p in partitions:
            sha.update(f"{p.clusters},{p.m},{p.n};".encode())
            sha.update(p.row_bytes)
            sha.update(p.col_bytes)
        return sha.hexdigest()


def _checked_labels(labels: Tensor | Sequence[int], clusters: int, side: str) -> Tensor:
    tensor = torch.as_tensor(labels).detach().cpu()
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise PlacementError(f"{side} labels must be integers, got {tensor.dtype}")
    if tensor.ndim != 1 or tensor.numel() == 0:
        raise PlacementError(f"{side} labels must be a non-empty vector, got shape {tuple(tensor.shape)}")
    low, high = int(tensor.min()), int(tensor.max())
    if low == UNPLACED:
        raise PlacementError(f"{side} labels are still unplaced ({UNPLACED}); plan them first, with localora.calibrate")
    if low < UNCOVERED or high >= clusters:
        raise PlacementError(f"{side} labels must lie in {UNCOVERED}..{clusters - 1}, got {low}..{high}")
    return tensor.to(LABEL_DTYPE).contiguous()
