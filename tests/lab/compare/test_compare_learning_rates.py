"""The choice of a learning rate as a pure function of known losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from localora.lab.compare.learning_rates import DIVERGED, Choice, choose_rate

GRID = (1e-3, 1e-2, 1e-1)


def bowl(best: float) -> Callable[[float], float]:
    """A loss that is least at `best`."""
    return lambda rate: 1 + abs(math.log10(rate / best))


def run(loss: Callable[[float], float], grid: Sequence[float] = GRID, widen: int = 2) -> tuple[Choice, list[float]]:
    """Make every run that is asked for until the rate is chosen; the choice, and the runs in order."""
    made: dict[float, float] = {}
    while True:
        found = choose_rate(grid, widen, made.get)
        if isinstance(found, Choice):
            return found, list(made)
        assert found  # or it would never end
        assert not set(found) & made.keys()
        made.update({rate: loss(rate) for rate in found})


def test_the_whole_grid_is_asked_for_first() -> None:
    assert choose_rate(GRID, 2, lambda rate: None) == [1e-3, 1e-2, 1e-1]
    assert choose_rate(GRID, 2, lambda rate: None if rate == 1e-2 else 1.0) == [1e-2]


def test_a_best_inside_the_grid() -> None:
    choice, runs = run(bowl(1e-2))
    assert (choice.rate, choice.at_edge, choice.added) == (1e-2, False, ())
    assert choice.tried == {1e-3: 2.0, 1e-2: 1.0, 1e-1: 2.0}
    assert len(runs) == 3
    assert choice.sentence() == "0.01 of 0.001, 0.01, 0.1"


def test_the_grid_is_widened_upwards_until_the_best_is_inside() -> None:
    choice, runs = run(bowl(1.0))
    assert (choice.rate, choice.at_edge, choice.added) == (1.0, False, (1.0, 10.0))
    assert runs[3:] == [1.0, 10.0]  # one at a time
    assert "the grid was widened by 1, 10" in choice.sentence()


def test_the_grid_is_widened_downwards() -> None:
    choice, _ = run(bowl(1e-4))
    assert (choice.rate, choice.at_edge, choice.added) == (1e-4, False, (1e-4, 1e-5))


def test_a_best_that_stays_at_the_edge_is_said() -> None:
    choice, runs = run(bowl(1e9))
    assert (choice.rate, choice.at_edge, choice.added) == (10.0, True, (1.0, 10.0))
    assert len(runs) == 5
    assert "still at the edge" in choice.sentence()
    assert run(bowl(1e9), widen=0)[0].added == ()


def test_a_step_beyond_keeps_the_ratio_of_the_grid() -> None:
    choice, _ = run(bowl(8e-3), grid=(1e-3, 2e-3, 4e-3))
    assert choice.added == (8e-3, 1.6e-2)


def test_equal_losses_go_to_the_lower_rate() -> None:
    choice, _ = run(lambda rate: 1.0 if rate in (1e-2, 1e-1) else 2.0)
    assert (choice.rate, choice.at_edge) == (1e-2, False)


def test_what_diverged_is_never_chosen_and_closes_the_grid() -> None:
    choice, _ = run(lambda rate: DIVERGED if rate > 2e-2 else -rate)
    assert (choice.rate, choice.at_edge, choice.added) == (1e-2, False, ())
    assert choice.tried[1e-1] == DIVERGED


def test_where_all_diverged_lower_rates_are_tried() -> None:
    choice, runs = run(lambda rate: DIVERGED if rate > 2e-4 else 1.0)
    assert (choice.rate, choice.added) == (1e-5, (1e-4, 1e-5))  # of two equal ones the lower
    assert runs[3:] == [1e-4, 1e-5]
    lost, _ = run(lambda rate: DIVERGED)
    assert (lost.rate, lost.at_edge) == (None, True)
    assert lost.sentence() == "every learning rate diverged"


@pytest.mark.parametrize("order", [(1e-1, 1e-3, 1e-2), (1e-2, 1e-1, 1e-3)])
def test_the_order_of_the_grid_does_not_matter(order: tuple[float, ...]) -> None:
    assert run(bowl(1e-2), grid=order)[0].tried == run(bowl(1e-2))[0].tried
