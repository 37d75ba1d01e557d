"""One layer moves to a new partition: labels, factors and the optimizer's moments together, in place.

Shape legend
    A_packed (r, n'), B_packed (m', r): the parameters        moments: optimizer state tensors of the same shape

Parameters stay the same objects, so optimizers, DDP and compiled graphs keep working. Where the new partition equals
the old one, nothing at all is touched.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from localora.adapter.layer import LocalizedLinear, check_fits
from localora.lifecycle.refit import match_clusters, pack, refit, start_new_columns, unpack
from localora.placement.partition import Partition
from localora.placement.thin import gram_norm, relative_difference, split_svd, thin_svd
from localora.placement.threads import one_thread


@dataclass(frozen=True)
class Move:
    """What a re-partition did to one layer.

    Attributes:
        rows, cols: how many rows and columns changed their cluster.
        delta_change: relative Frobenius change of dW that the move itself caused.
        residual: `(c, n)` and `(m, c)` factors of the old dW minus the new one, if asked for.
        state: what became of the optimizer's state: "kept" (moments of what stayed kept, of what moved reset),
            "cleared" (moments that cannot be edited by row or column, so all were dropped), or "none".
    """

    rows: int
    cols: int
    delta_change: float
    residual: tuple[Tensor, Tensor] | None
    state: str


NEGLIGIBLE = 1e-8  # singular values of a residual below this share of the largest are rounding
SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "state2")  # in torch's Adam and RMSprop, and in bitsandbytes

STILL = Move(0, 0, 0.0, None, "none")


@torch.no_grad()
@one_thread()
def move_layer(
    layer: LocalizedLinear,
    name: str,
    new: Partition,
    optimizer: torch.optim.Optimizer | Any | None = None,
    keep_residual: bool = False,
) -> Move:
    """Take the layer's local term from its present partition to `new`.

    Args:
        layer: an adapted, placed layer.
        name: the adapter.
        new: a partition of the same shape; its cluster numbers are matched to the present ones first.
        optimizer: whose state of the two factors is carried along.
        keep_residual: hand back what was lost of dW. It takes several times the memory of the adapter itself.

    Raises:
        UnplacedAdapterError: the adapter has no partition to move from.
        PlacementError: `new` does not fit the adapter's fixed shapes.
        TypeError: the factors are sharded (FSDP, ZeRO-3): rows cannot be moved between processes here.
    """
    old = layer.local_partition(name)
    assert old is not None
    check_fits(new, layer.localized_layout[name].budget, name)
    new = match_clusters(new, old)
    if new == old:
        return STILL
    A, B = (factors[name].get_parameter("weight") for factors in (layer.localized_local_A, layer.localized_local_B))
    _check_whole(layer, name, A, B)
    A_before, B_before = layer.dense_factors(name)
    rows_old, cols_old, rows_new, cols_new = (
        labels.to(A.device) for labels in (old.row_labels, old.col_labels, new.row_labels, new.col_labels)
    )
    A_full = start_new_columns(unpack(A.data, cols_old, dim=1), old, new)
    A_full, B_full = refit(A_full, unpack(B.data, rows_old, dim=0), old, new)
    A.copy_(pack(A_full, cols_new, dim=1))
    B.copy_(pack(B_full, rows_new, dim=0))
    layer.place(name, new)
    states = {
        _carry_state(optimizer, A, cols_old, cols_new, dim=1),
        _carry_state(optimizer, B, rows_old, rows_new, dim=0),
    }
    A_after, B_after = layer.dense_factors(name)
    return Move(
        rows=int((rows_old != rows_new).sum()),
        cols=int((cols_old != cols_new).sum()),
        delta_change=relative_difference(A_before, B_before, A_after, B_after, gram_norm),
        residual=(torch.cat([A_before, A_after]), torch.cat([B_before, -B_after], dim=1)) if keep_residual else None,
        state=worst_state(states),
    )


def _check_whole(layer: LocalizedLinear, name: str, A: nn.Parameter, B: nn.Parameter) -> None:
    local = layer.localized_layout[name].budget.local
    assert local is not None
    plain = all(type(parameter.data) in (Tensor, nn.Parameter) for parameter in (A, B))
    if not plain or (A.shape, B.shape) != ((local.rank, local.cols), (local.rows, local.rank)):
        raise TypeError(
            f"the factors of the adapter {name!r} are sharded over processes (FSDP or ZeRO-3), so their rows and "
            "columns cannot be moved; train with repartition=[], or with DDP"
        )


def worst_state(states: Collection[str]) -> str:
    """The state to report of several: "cleared" if any was, else "kept" if any was, else "none"."""
    return next((state for state in ("cleared", "kept") if state in states), "none")


def _carry_state(optimizer: Any, parameter: nn.Parameter, old: Tensor, new: Tensor, dim: int) -> str:
    """Move the optimizer's per-entry tensors with their columns or rows; what moved starts afresh.

    A first moment starts at 0. A second moment (SECOND_MOMENTS) starts at the mean of those that stayed, not at 0:
    Adam's step count is shared by the whole tensor, so an uncorrected zero would make the first steps of a moved column
    three times too large (0.1 g / sqrt(0.001 g^2)).
    """
    state = optimizer.state.get(parameter) if optimizer is not None else None
    if not state:
        return "none"
    moments = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.ndim > 0}
    editable = all(value.shape == parameter.shape and value.dtype.is_floating_point for value in moments.values())
    if not editable:
        state.clear()  # block-quantised (8-bit, paged) or factored moments: optimizers rebuild an empty state
        return "cleared"
    stayed = (old == new) & (new >= 0)
    for key, value in moments.items():
        full = unpack(value, old, dim)
        fresh = 0.0
        if key in SECOND_MOMENTS and bool(stayed.any()):
            fresh = float(full.index_select(dim, stayed.nonzero().flatten()).mean())
        full.index_fill_(dim, ((old != new) & (new >= 0)).nonzero().flatten(), fresh)
        value.copy_(pack(full, new, dim))
    return "kept"


@torch.no_grad()
def carry_residuals(layers: dict[str, LocalizedLinear], name: str, moves: dict[str, Move]) -> int:
    """Add each move's residual to its layer's frozen term, compressed to its numerical rank; returns the common rank.

    All layers get the same rank, padded with zeros, so that one number in the config gives the shapes at load.
    """
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    for key, layer in layers.items():
        A, B = [], []
        if name in layer.localized_carry_A:
            A.append(layer.localized_carry_A[name])
            B.append(layer.localized_carry_B[name])
        residual = moves[key].residual
        if residual is not None:
            A.append(residual[0])
            B.append(residual[1])
        if A:
            U, S, Vh = thin_svd(torch.cat(A), torch.cat(B, dim=1))
            kept[key] = split_svd(U, S, Vh, int((NEGLIGIBLE * S[0] < S).sum()))
    rank = max((A.shape[0] for A, _ in kept.values()), default=0)
    for key, layer in layers.items():
        if key not in kept:
            kept[key] = (torch.zeros(0, layer.in_features), torch.zeros(layer.out_features, 0))
        A_cn, B_mc = kept[key]
        missing = rank - A_cn.shape[0]
        device = next(layer.parameters()).device
        layer.set_carry(
            name,
            nn.functional.pad(A_cn.float(), (0, 0, 0, missing)).to(device),
            nn.functional.pad(B_mc.float(), (0, missing)).to(device),
        )
    return rank
