"""G-LoRA's planner: the rows and columns that a first-order Taylor score calls important become the local block.

Shape legend
    m, n    rows and columns of W       m', n'  rows and columns of the block

Importance of an entry is what the loss would change, to first order, if the entry were removed:
I = |W * dL/dW| (elementwise). The planner sees only its row sums `(m,)` and column sums `(n,)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localora.placement.partition import Partition, PlacementError


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
