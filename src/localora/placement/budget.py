"""How many rows, columns and ranks an adapter may spend, so that every method costs what LoRA of rank r costs.

Shape legend
    m, n    rows and columns of W              r     the LoRA-equivalent rank: the budget is r (m + n) parameters
    m', n'  rows and columns of the block      K     clusters
    r_g     rank of the global term            r_l   rank of the local (block or cluster) terms

The shapes are fixed here, from the config alone. Labels never change them: a clustered term of rank r stores one
column of A per column of W and one row of B per row of W whatever the sizes of its clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

TOLERANCE = 0.005  # trainable parameters may differ from LoRA's by this share
LORA = "LoRA's own factors"  # what a layer gets that holds nothing else


@dataclass(frozen=True)
class LocalShape:
    """The labelled partition: K clusters, factors A `(rank, cols)` and B `(rows, rank)`."""

    clusters: int
    rank: int
    rows: int
    cols: int

    @property
    def parameters(self) -> int:
        return self.rank * (self.rows + self.cols)


@dataclass(frozen=True)
class LayerBudget:
    """Fixed shapes of one adapted m x n matrix: a global term of rank `global_rank` (0: none) and a local one.

    `compromise` says in words what the matrix is too small for, and what it got in its place; empty if it got all that
    was asked for.
    """

    m: int
    n: int
    global_rank: int
    local: LocalShape | None
    compromise: str = field(default="", compare=False)

    @property
    def parameters(self) -> int:
        """Trainable parameters of the layer."""
        return self.global_rank * (self.m + self.n) + (self.local.parameters if self.local else 0)

    @property
    def has_choice(self) -> bool:
        """Whether labels decide anything: not without a local term, nor with one cluster of all rows and columns."""
        whole = LocalShape(1, self.local.rank, self.m, self.n) if self.local else None
        return self.local != whole

    @property
    def dense_rank(self) -> int:
        """R, the rank of the plain LoRA that equals this adapter: r_g + K r_l."""
        return self.global_rank + (self.local.clusters * self.local.rank if self.local else 0)


@lru_cache(maxsize=256)  # a model has few shapes, and the search looks at every rank
def global_local_budget(m: int, n: int, r: int, global_share: float, local_size: float) -> LayerBudget:
    """G-LoRA: solve r_l and the block's size from r, the global share and `local_size`.

    `global_share` of the rank goes to the global term, r_g = round(global_share r). The rest of the budget,
    (r - r_g)(m + n), is spent on a block of about `local_size` of the rows and of the columns:
    r_l (m' + n') = (r - r_g)(m + n). Since all are integers, r_l is rounded and the block grows or shrinks by a few
    rows to keep the product; the rank nearest to the asked-for size that meets the budget within 0.5 % wins.

    No matrix is too small: where a block of that size cannot hold its rank, the block is larger, and where none can,
    the layer has LoRA's own factors.
    """
    r_g, compromise = _global_rank(r, global_share)
    if r_g == r:
        return LayerBudget(m, n, r, None, compromise)

    rest = (r - r_g) * (m + n)
    r_l_exact = rest / (local_size * (m + n))
    nearest_first = sorted(range(r - r_g, min(m, n) + 1), key=lambda r_l: (abs(math.log(r_l / r_l_exact)), r_l))
    for r_l in nearest_first:
        block = _block_shape(m, n, rest, r_l)
        if block is None or abs(block.parameters - rest) > TOLERANCE * r * (m + n):
            continue
        size = (block.rows + block.cols) / (m + n)
        if size > local_size * 1.1 and size - local_size > 2 / (m + n):  # more than what rounding takes
            if size == 1:  # the whole matrix, a second LoRA beside the first
                break
            compromise = _both(compromise, f"a block of {size:.3g} of its rows and columns instead of {local_size:.3g}")
        return LayerBudget(m, n, r_g, block, compromise)
    return LayerBudget(m, n, r, None, LORA)


def clustered_budget(m: int, n: int, r: int, global_share: float, clusters: int) -> LayerBudget:
    """CPS-LoRA (`global_share` 0) and the hybrid: r_g + r_l = r, exactly LoRA's parameters for any sizes of clusters.

    A matrix of fewer rows or columns than clusters gets as many clusters as it has; with one, LoRA's own factors.
    """
    r_g, compromise = _global_rank(r, global_share)
    if r_g == r:
        return LayerBudget(m, n, r, None, compromise)
    fitting = min(clusters, m, n)
    if fitting == 1 < clusters:
        return LayerBudget(m, n, r, None, LORA)
    if fitting < clusters:
        compromise = _both(compromise, f"{fitting} clusters instead of {clusters}")
    return LayerBudget(m, n, r_g, LocalShape(fitting, r - r_g, m, n), compromise)


def _global_rank(r: int, global_share: float) -> tuple[int, str]:
    """r_g and what it is a compromise for: a term that was asked for is not rounded away while there is rank for it."""
    r_g = math.floor(global_share * r + 0.5)
    if not 0 < global_share < 1 or 0 < r_g < r:
        return r_g, ""
    if r == 1:
        return 1, f"LoRA's own factors, since rank 1 cannot be split (global_share={global_share:g})"
    r_g = min(max(r_g, 1), r - 1)
    return r_g, f"a global term of rank {r_g} of {r} (global_share={global_share:g} rounds to {0 if r_g == 1 else r})"


def _both(first: str, second: str) -> str:
    return f"{first} and {second}" if first else second


def _block_shape(m: int, n: int, rest: int, r_l: int) -> LocalShape | None:
    """The block of rank r_l whose m' + n' spends `rest`, with m' : n' as m : n. None if the rank does not fit it."""
    side = min(round(rest / r_l), m + n)
    rows = min(max(round(side * m / (m + n)), 1), m)
    cols = min(max(side - rows, 1), n)
    if r_l > min(rows, cols):
        return None
    return LocalShape(1, r_l, rows, cols)
