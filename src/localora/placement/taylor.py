"""G-LoRA's planner: the rows and columns that a first-order Taylor score calls important become the local block.

Shape legend
    T       tokens of a batch           x   (T, n) inputs      g   (T, m) gradient of the loss by the layer's output
    m, n    rows and columns of W       G   (m, n) = sum_t g_t x_t^T, the batch gradient dL/dW
    m', n'  rows and columns of the block

Importance of an entry is what the loss would change, to first order, if the entry were removed:
I = |W * G| (elementwise). The planner sees only its row sums `(m,)` and column sums `(n,)`: the base weight never
requires grad, and G is formed a band of rows at a time and never kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localora.placement.partition import Partition, PlacementError

CACHED_BAND, LARGE_BAND = 2**20, 2**23  # entries of G formed at a time: on a CPU they stay in its cache


def band_rows(n: int, device_type: str) -> int:
    """How many rows of G `(m, n)` are formed at a time."""
    return max(1, (CACHED_BAND if device_type == "cpu" else LARGE_BAND) // n)


class TaylorScores:
    """Row and column sums of I = |W * G|, summed over batches (G is each batch's own gradient).

    With `within`, rows are scored over that block's columns and columns over its rows, and the block's share of the
    total importance is measured. It is a first-order Taylor score: removing W_ij changes the loss by about W_ij G_ij.
    """

    def __init__(self, m: int, n: int, within: Partition | None = None) -> None:
        self.rows = torch.zeros(m, dtype=torch.float64)
        self.cols = torch.zeros(n, dtype=torch.float64)
        self.total = torch.zeros((), dtype=torch.float64)
        self.inside = torch.zeros((), dtype=torch.float64)
        self.batches = 0
        self._row_mask = torch.ones(m) if within is None else (within.row_labels >= 0).float()
        self._col_mask = torch.ones(n) if within is None else (within.col_labels >= 0).float()

    def observe(self, x_tn: Tensor, g_tm: Tensor, W_mn: Tensor) -> None:
        """Add one batch. x `(T, n)`, g `(T, m)`, W `(m, n)`.

        A bfloat16 G is formed in bfloat16, as autograd would form it; all else is float32 or wider.
        """
        dtype = torch.promote_types(x_tn.dtype, torch.float32)
        x, g = (x_tn, g_tm.to(x_tn)) if x_tn.dtype == torch.bfloat16 else (x_tn.to(dtype), g_tm.to(dtype))
        row_mask, col_mask = self._row_mask.to(x.device, dtype), self._col_mask.to(x.device, dtype)
        height = band_rows(x.shape[1], x.device.type)
        for band in range(0, g.shape[1], height):
            rows = slice(band, band + height)
            importance = (g[:, rows].T @ x).to(dtype).mul_(W_mn[rows].to(dtype)).abs_()
            row_sums = importance @ col_mask
            self.rows[rows] += row_sums.cpu()
            self.cols += (row_mask[rows] @ importance).cpu()
            self.total += importance.sum().cpu()
            self.inside += (row_mask[rows] @ row_sums).cpu()
            del importance  # before the next band is formed
        self.batches += 1

    @property
    def inside_share(self) -> float:
        """Share of the importance that lies in the block `within`; 0 where there is no importance at all."""
        return float(self.inside / self.total) if self.total > 0 else 0.0

    def tensors(self) -> list[Tensor]:
        """What is summed over the processes of a distributed run."""
        return [self.rows, self.cols, self.total, self.inside]


def plan_block(row_scores_m: Tensor, col_scores_n: Tensor, rows: int, cols: int) -> Partition:
    """The block of the `rows` highest row scores and the `cols` highest column scores.

    Ties go to the lower index, so that equal scores, all zeros among them, give the same block on every device.

    Raises:
        PlacementError: scores that are not finite or not vectors, or a block larger than the matrix.
    """
    top_rows = _top(row_scores_m, rows, "row")
    top_cols = _top(col_scores_n, cols, "column")
    return Partition.block(row_scores_m.numel(), col_scores_n.numel(), top_rows, top_cols)


def _top(scores: Tensor, count: int, side: str) -> Tensor:
    if scores.ndim != 1:
        raise PlacementError(f"{side} scores must be a vector, got shape {tuple(scores.shape)}")
    if not torch.isfinite(scores).all():
        raise PlacementError(
            f"the {side} scores hold NaN or infinity; check the calibration batches and the precision of the model"
        )
    if not 1 <= count <= scores.numel():
        raise PlacementError(f"cannot choose {count} of {scores.numel()} {side}s")
    return torch.argsort(scores.detach().cpu(), descending=True, stable=True)[:count]
