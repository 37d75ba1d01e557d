"""Layers are planned side by side: the same labels on any number of threads, and no trace of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from localora.placement.captured import captured_energy
from localora.placement.coclustering import plan_coclusters
from localora.placement.threads import over_threads


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def plan(seed: int) -> tuple[bytes, bytes, float]:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(60, 12, generator=generator), torch.randn(12, 50, generator=generator)
    result = plan_coclusters(left, right, clusters=3, rank=2, balance=0.5, seed=seed)
    again = plan_coclusters(left, right, clusters=3, rank=2, balance=0.5, seed=seed + 1, start=result.partition)
    assert result.start_energy is None
    assert again.start_energy == captured_energy(left, right, result.partition, 2)
    return again.partition.row_bytes, again.partition.col_bytes, again.captured_energy


def test_plans_are_the_same_side_by_side() -> None:
    torch.set_num_threads(1)
    alone = over_threads(plan, range(12))
    torch.set_num_threads(3)
    assert over_threads(plan, range(12)) == alone
    assert torch.get_num_threads() == 3


def test_each_thread_computes_alone_and_in_order() -> None:
    torch.set_num_threads(2)
    assert over_threads(lambda item: (item, torch.get_num_threads()), range(5)) == [(item, 1) for item in range(5)]


def test_an_error_in_one_is_the_error_of_all() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        over_threads(lambda item: 1 / item, [2, 1, 0])
    assert torch.get_num_threads() == 2
