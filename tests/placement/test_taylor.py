"""The Taylor planner: a planted block comes back exactly; ties, zeros and nonsense have a defined answer."""

from __future__ import annotations

import pytest
import torch

from localora.placement.partition import PlacementError
from localora.placement.taylor import plan_block


def test_planted_block_is_found_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    importance = torch.rand(40, 30, generator=generator)
    rows = torch.randperm(40, generator=generator)[:10]
    cols = torch.randperm(30, generator=generator)[:7]
    importance[rows[:, None], cols] += 4
    partition = plan_block(importance.sum(1), importance.sum(0), 10, 7)
    planted = torch.zeros(40, 30, dtype=torch.bool)
    planted[rows[:, None], cols] = True
    assert torch.equal(partition.mask(), planted)


def test_ties_and_zeros_go_to_the_lower_index() -> None:
    partition = plan_block(torch.tensor([1.0, 3.0, 3.0, 3.0]), torch.zeros(5), 2, 3)
    assert partition.row_labels.tolist() == [-1, 0, 0, -1]
    assert partition.col_labels.tolist() == [0, 0, 0, -1, -1]


def test_the_whole_matrix_and_one_row() -> None:
    assert plan_block(torch.rand(4), torch.rand(3), 4, 3).mask().all()
    assert plan_block(torch.tensor([2.0]), torch.tensor([1.0, 5.0]), 1, 1).mask().tolist() == [[False, True]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_must_be_finite(bad: float) -> None:
    with pytest.raises(PlacementError, match="column scores hold NaN or infinity; check the calibration batches"):
        plan_block(torch.ones(3), torch.tensor([1.0, bad]), 1, 1)


@pytest.mark.parametrize(
    ("rows", "cols", "message"), [(0, 1, "0 of 3 rows"), (4, 1, "4 of 3 rows"), (1, 3, "3 of 2 col")]
)
def test_sizes_must_fit(rows: int, cols: int, message: str) -> None:
    with pytest.raises(PlacementError, match=f"cannot choose {message}"):
        plan_block(torch.ones(3), torch.ones(2), rows, cols)


def test_scores_must_be_vectors() -> None:
    with pytest.raises(PlacementError, match=r"row scores must be a vector, got shape \(3, 2\)"):
        plan_block(torch.ones(3, 2), torch.ones(2), 1, 1)
