"""The one formula for dW: packed factors and labels in, plain LoRA factors out.

Shape legend
    m, n    rows (outputs) and columns (inputs) of W      r   rank of the partition     K   its clusters
    m', n'  covered rows and columns                      R   rank of the plain LoRA that equals the adapter

A partition stores A `(r, n')`, one column per covered column of W, and B `(m', r)`, one row per covered row, in the
order of W. Its update is

    dW = s * sum_k  B[R_k] @ A[:, C_k]   placed at rows R_k, columns C_k

which is B_dense @ A_dense with A scattered to `(K r, n)` and B to `(m, K r)`: the slice k of both holds cluster k and
zeros elsewhere. Forward, merge, unmerge and export all multiply these dense factors and nothing else. The scatter
costs K r (m + n), nothing beside the activations, and its shapes never depend on what the labels are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def scatter_columns(A_rn: Tensor, labels_n: Tensor, clusters: int) -> Tensor:
    """A `(r, n')` and column labels `(n,)` to A_dense `(K r, n)`. Differentiable in A."""
    r = A_rn.shape[0]
    if A_rn.shape[1] < labels_n.numel():
        A_rn = A_rn.index_select(1, _packed_position(labels_n))
    member_kn = labels_n == torch.arange(clusters, device=labels_n.device).unsqueeze(1)
    zero = torch.zeros((), dtype=A_rn.dtype, device=A_rn.device)
    return torch.where(member_kn.unsqueeze(1), A_rn, zero).reshape(clusters * r, -1)


def scatter_rows(B_mr: Tensor, labels_m: Tensor, clusters: int) -> Tensor:
    """B `(m', r)` and row labels `(m,)` to B_dense `(m, K r)`. Differentiable in B."""
    r = B_mr.shape[1]
    if B_mr.shape[0] < labels_m.numel():
        B_mr = B_mr.index_select(0, _packed_position(labels_m))
    member_mk = labels_m.unsqueeze(1) == torch.arange(clusters, device=labels_m.device)
    zero = torch.zeros((), dtype=B_mr.dtype, device=B_mr.device)
    return torch.where(member_mk.unsqueeze(2), B_mr.unsqueeze(1), zero).reshape(-1, clusters * r)


def _packed_position(labels: Tensor) -> Tensor:
    """Where each row or column of W lies in the packed factor; uncovered ones point anywhere and are masked out."""
    return (torch.cumsum(labels >= 0, dim=0) - 1).clamp_(min=0)


class ColumnFactor(nn.Module):
    """The packed A `(r, n')` of one partition, as `weight`.

    The factor is a childless module with a `weight`, and its forward returns a new tensor rather than the weight
    itself, because FSDP shards such modules and holds their weight whole only inside their forward.
    """

    def __init__(self, rank: int, cols: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rank, cols))

    def forward(self, col_labels: Tensor | None, clusters: int) -> Tensor:
        """A_dense `(K r, n)`; `col_labels=None` means the whole matrix in one cluster."""
        return self.weight.clone() if col_labels is None else scatter_columns(self.weight, col_labels, clusters)


class RowFactor(nn.Module):
    """The packed B `(m', r)` of one partition, as `weight`; see :class:`ColumnFactor`."""

    def __init__(self, rows: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, rank))

    def forward(self, row_labels: Tensor | None, clusters: int, scale: float) -> Tensor:
        """s B_dense `(m, K r)`: the scale is folded in here, once, so that no pass over the activations applies it."""
        weight = self.weight * scale
        return weight if row_labels is None else scatter_rows(weight, row_labels, clusters)
