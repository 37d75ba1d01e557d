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

Both factors are scattered alike, one entry (a column of W for A, a row for B) with its r numbers at a time: seen as
`(n, K, r)`, the dense factor of n entries is n K short rows, and an entry j of cluster k fills the one at j K + k.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from localora.adapter.zero import gathered, tell_optimizer

Factors = tuple[Tensor, Tensor]  # A (R, n) and B (m, R), dense


def places_of(labels_n: Tensor, covered: int, clusters: int) -> Tensor | None:
    """Where each covered entry goes, int64 `(n',)`: j K + label; None if there is nothing to scatter.

    The labels must be placed. Their number of covered entries is given, so no shape depends on data.
    """
    n = labels_n.numel()
    if covered == n and clusters == 1:
        return None
    order = torch.argsort(labels_n < 0, stable=True)[:covered]
    return order * clusters + labels_n[order]


def scatter(packed_nr: Tensor, places: Tensor | None, entries: int, clusters: int) -> Tensor:
    """The packed numbers `(n', r)` of one side to the dense `(n, K r)`. Differentiable in them."""
    return packed_nr if places is None else _Scatter.apply(packed_nr, places, entries, clusters)  # type: ignore[no-untyped-call]


class _Scatter(torch.autograd.Function):
    """Autograd's own index_copy would save the places; ours are kept from step to step, beside the labels."""

    @staticmethod
    def forward(ctx: Any, packed_nr: Tensor, places: Tensor, entries: int, clusters: int) -> Tensor:
        r = packed_nr.shape[1]
        ctx.places, ctx.r = places, r
        return packed_nr.new_zeros(entries * clusters, r).index_copy_(0, places, packed_nr).view(entries, clusters * r)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        return g.reshape(-1, ctx.r).index_select(0, ctx.places), None, None, None


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, where FSDP2 or tensor parallelism left this process a shard of it: then all must ask for it."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


@torch.no_grad()
def write_whole(parameter: nn.Parameter, values: Tensor) -> None:
    """Copy full values, the same on every process, into a parameter that may be sharded, or trained as a copy."""
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
        values = distribute_tensor(values.to(parameter.device), mesh, parameter.placements)  # type: ignore[attr-defined]
    with gathered(parameter, written=True):
        parameter.copy_(values)
    tell_optimizer(parameter)


def joined(first: Factors, second: Factors | None) -> Factors:
    """The sum of both products as one pair of factors, of the first ones' dtype and device."""
    if second is None:
        return first
    (A, B), (C, D) = first, second
    return torch.cat([A, C.to(A)]), torch.cat([B, D.to(B)], dim=1)


def product(A_cn: Tensor, B_mc: Tensor) -> Tensor:
    """B A `(m, n)`, in float32 or wider; also under autocast, or a base weight that it is added to would be rounded."""
    wide = torch.promote_types(A_cn.dtype, torch.float32)
    device = A_cn.device.type  # some, as meta, know no autocast
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        return B_mc.to(wide) @ A_cn.to(wide)


class _Factor(nn.Module):
    """A packed factor of one partition, as `weight`, and the places its labels name.

    The factor is a childless module with a `weight`, and its forward returns a new tensor rather than the weight
    itself, because FSDP shards such modules and holds their weight whole only inside their forward.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self._read: tuple[Tensor, int, Tensor | None] | None = None

    def scattered(self, packed_nr: Tensor, labels: Tensor | None, clusters: int) -> Tensor:
        """`labels=None` means the whole matrix in one cluster."""
        if labels is None:
            return packed_nr
        return scatter(packed_nr, self.places(labels, packed_nr.shape[0], clusters), labels.numel(), clusters)

    def places(self, labels: Tensor, covered: int, clusters: int) -> Tensor | None:
        """Read from the labels, once for as long as they are the same tensor, unwritten since."""
        if torch.compiler.is_compiling() or labels.is_inference():
            return places_of(labels, covered, clusters)  # a compiled graph reads them anew, and so outlives a move
        if self._read is None or self._read[0] is not labels or self._read[1] != labels._version:
            self._read = (labels, labels._version, places_of(labels, covered, clusters))
        return self._read[2]


class ColumnFactor(_Factor):
    """The packed A `(r, n')`."""

    def forward(self, col_labels: Tensor | None, clusters: int, dtype: torch.dtype | None = None) -> Tensor:
        """A_dense `(K r, n)`, of `dtype` if given."""
        weight = whole(self.weight)
        weight = weight.clone() if dtype in (None, weight.dtype) else weight.to(dtype)
        return self.scattered(weight.T, col_labels, clusters).T


class RowFactor(_Factor):
    """The packed B `(m', r)`."""

    def forward(
        self, row_labels: Tensor | None, clusters: int, scale: float, dtype: torch.dtype | None = None
    ) -> Tensor:
        """s B_dense `(m, K r)`: the scale is folded in here, once, so that no pass over the activations applies it."""
        weight = whole(self.weight) * scale
        return self.scattered(weight if dtype is None else weight.to(dtype), row_labels, clusters)
