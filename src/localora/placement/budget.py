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
from dataclasses import dataclass
from functools import lru_cache

from localora.errors import LocaloraError

TOLERANCE = 0.005  # trainable parameters may differ from LoRA's by this share


class BudgetError(LocaloraError, ValueError):
    """A rank, share or size that no adapter of this budget can have; the message names the nearest that can."""


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
    """Fixed shapes of one adapted m x n matrix: a global term of rank `global_rank` (0: none) and a local one."""

    m: int
    n: int
    global_rank: int
    local: LocalShape | None

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


def lora_parameters(m: int, n: int, r: int) -> int:
    """What plain LoRA of rank r trains on an m x n matrix."""
    return r * (m + n)


@lru_cache(maxsize=256)  # a model has few shapes, and the search looks at every rank
def global_local_budget(m: int, n: int, r: int, global_share: float, local_size: float) -> LayerBudget:
    """G-LoRA: solve r_l and the block's size from r, the global share and `local_size`.

    `global_share` of the rank goes to the global term, r_g = round(global_share r). The rest of the budget,
    (r - r_g)(m + n), is spent on a block of about `local_size` of the rows and of the columns:
    r_l (m' + n') = (r - r_g)(m + n). Since all are integers, r_l is rounded and the block grows or shrinks by a few
    rows to keep the product; the rank nearest to the asked-for size that meets the budget within 0.5 % wins.

    Raises:
        BudgetError: no integers fit; the message names the nearest setting that does.
    """
    _check_rank(m, n, r)
    if not 0 < local_size <= 1:
        raise BudgetError(f"local_size must lie in (0, 1], got {local_size}")
    r_g = _global_rank(r, global_share)
    if r_g == r:
        return LayerBudget(m, n, r, None)

    rest = (r - r_g) * (m + n)
    smallest = _smallest_local_size(m, n, rest)
    r_l_exact = rest / (local_size * (m + n))
    nearest_first = sorted(range(r - r_g, min(m, n) + 1), key=lambda r_l: (abs(math.log(r_l / r_l_exact)), r_l))
    for r_l in nearest_first:
        block = _block_shape(m, n, rest, r_l)
        if block is None or abs(block.parameters - rest) > TOLERANCE * r * (m + n):
            continue
        size = (block.rows + block.cols) / (m + n)
        # A block much larger than asked for is another experiment, not a rounding.
        if size > local_size * 1.1 and size - local_size > 2 / (m + n):
            break
        return LayerBudget(m, n, r_g, block)
    raise BudgetError(
        f"a block of local_size={local_size} of a {m} x {n} matrix cannot spend what r={r} and "
        f"global_share={global_share} leave it: that takes rank {r_l_exact:.0f} on about "
        f"{local_size * min(m, n):.0f} rows or columns. "
        f"The nearest possible local_size is {smallest}"
    )


def clustered_budget(m: int, n: int, r: int, global_share: float, clusters: int) -> LayerBudget:
    """CPS-LoRA (`global_share` 0) and the hybrid: r_g + r_l = r, exactly LoRA's parameters for any sizes of clusters.

    Raises:
        BudgetError: more clusters than rows or columns, or ranks that do not fit.
    """
    _check_rank(m, n, r)
    if clusters < 1:
        raise BudgetError(f"clusters must be at least 1, got {clusters}")
    if clusters > min(m, n):
        raise BudgetError(f"{clusters} clusters do not fit a {m} x {n} matrix; the most is {min(m, n)}")
    r_g = _global_rank(r, global_share)
    if r_g == r:
        return LayerBudget(m, n, r, None)
    return LayerBudget(m, n, r_g, LocalShape(clusters, r - r_g, m, n))


def _check_rank(m: int, n: int, r: int) -> None:
    if r < 1:
        raise BudgetError(f"the rank r must be at least 1, got {r}")
    if r > min(m, n):
        raise BudgetError(f"rank r={r} does not fit a {m} x {n} matrix; the largest is {min(m, n)}")


def _global_rank(r: int, global_share: float) -> int:
    if not 0 <= global_share <= 1:
        raise BudgetError(f"global_share must lie in [0, 1], got {global_share}")
    r_g = math.floor(global_share * r + 0.5)
    if 0 < global_share < 1 and r_g in (0, r):
        if r == 1:
            raise BudgetError(
                f"global_share={global_share} cannot split rank r=1; the nearest possible is {r_g}, or r=2"
            )
        nearest = 1 / r if r_g == 0 else (r - 1) / r
        raise BudgetError(
            f"global_share={global_share} of rank r={r} rounds to {r_g}, which leaves one term without rank; "
            f"the nearest possible is {nearest:.4g} (or exactly {r_g // r})"
        )
    return r_g


def _block_shape(m: int, n: int, rest: int, r_l: int) -> LocalShape | None:
    """The block of rank r_l whose m' + n' spends `rest`, with m' : n' as m : n. None if the rank does not fit it."""
    side = min(round(rest / r_l), m + n)
    rows = min(max(round(side * m / (m + n)), 1), m)
    cols = min(max(side - rows, 1), n)
    if r_l > min(rows, cols):
        return None
    return LocalShape(1, r_l, rows, cols)


def _smallest_local_size(m: int, n: int, rest: int) -> float:
    """The smallest size, to three decimals, at which some block of full rank can still spend `rest`."""
    sizes = (
        (block.rows + block.cols) / (m + n)
        for r_l in range(1, min(m, n) + 1)
        if (block := _block_shape(m, n, rest, r_l)) and abs(block.parameters - rest) <= TOLERANCE * rest
    )
    return math.ceil(min(sizes, default=1.0) * 1000) / 1000
