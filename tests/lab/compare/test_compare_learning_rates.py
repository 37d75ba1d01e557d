"""The choice of a learning rate as a pure function of known losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from localora.lab.compare.learning_rates import DIVERGED, Choice, Needs, choose_rate

GRID = (1e-3, 1e-2, 1e-1)


def bowl(best: float) -> Callable[[int, float], float]:
    """A loss that is least at `best`."""
    return lambda steps, rate: 1 + abs(math.log10(rate / best))


def run(
    loss: Callable[[int, float], float], grid: Sequence[float] = GRID, rungs: Sequence[int] = (10,), widen: int = 2
) -> tuple[Choice, list[tuple[int, float]]]:
    """Make every run that is asked for until the rate is chosen; the choice, and the runs in order."""
    made: dict[tuple[int, float], float] = {}

    def known(steps: int, rate: float) -> float | None:
        return made.get((steps, rate))

    while True:
        found = choose_rate(grid, rungs, widen, known)
        if isinstance(found, Choice):
            return found, list(made)
        assert found.runs  # or it would never end
        assert not set(found.runs) & made.keys()
        made.update({(steps, rate): loss(steps, rate) for steps, rate in found.runs})


def test_the_whole_grid_is_asked_for_first() -> None:
    assert choose_rate(GRID, [10], 2, lambda steps, rate: None) == Needs(((10, 1e-3), (10, 1e-2), (10, 1e-1)))
    assert choose_rate(GRID, [10], 2, lambda steps, rate: None if rate == 1e-2 else 1.0) == Needs(((10, 1e-2),))


def test_a_best_inside_the_grid() -> None:
    choice, runs = run(bowl(1e-2))
    assert (choice.rate, choice.at_edge, choice.added) == (1e-2, False, ())
    assert choice.tried == {1e-3: 2.0, 1e-2: 1.0, 1e-1: 2.0}
    assert len(runs) == 3
    assert choice.sentence() == "0.01 of 0.001, 0.01, 0.1"


def test_the_grid_is_widened_upwards_until_the_best_is_inside() -> None:
    choice, runs = run(bowl(1.0))
    assert (choice.rate, choice.at_edge, choice.added) == (1.0, False, (1.0, 10.0))
    assert runs[3:] == [(10, 1.0), (10, 10.0)]  # one at a time
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
    choice, _ = run(lambda steps, rate: 1.0 if rate in (1e-2, 1e-1) else 2.0)
    assert (choice.rate, choice.at_edge) == (1e-2, False)


def test_what_diverged_is_never_chosen_and_closes_the_grid() -> None:
    choice, _ = run(lambda steps, rate: DIVERGED if rate > 2e-2 else -rate)
    assert (choice.rate, choice.at_edge, choice.added) == (1e-2, False, ())
    assert choice.tried[1e-1] == DIVERGED


def test_where_all_diverged_lower_rates_are_tried() -> None:
    choice, runs = run(lambda steps, rate: DIVERGED if rate > 2e-4 else 1.0)
    assert (choice.rate, choice.added) == (1e-5, (1e-4, 1e-5))  # of two equal ones the lower
    assert runs[3:] == [(10, 1e-4), (10, 1e-5)]
    lost, _ = run(lambda steps, rate: DIVERGED)
    assert (lost.rate, lost.at_edge) == (None, True)
    assert lost.sentence() == "every learning rate diverged"


def test_short_runs_narrow_the_grid_to_the_best_and_its_neighbours() -> None:
    grid = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    choice, runs = run(bowl(1e-2), grid=grid, rungs=(10, 40))
    assert runs == [(10, rate) for rate in grid] + [(40, 1e-3), (40, 1e-2), (40, 1e-1)]
    assert choice.tried == {1e-3: 2.0, 1e-2: 1.0, 1e-1: 2.0}  # of the long runs alone


def test_a_long_run_may_prefer_what_a_short_one_narrowed_away() -> None:
    grid = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    choice, runs = run(lambda steps, rate: bowl(1e-2 if steps == 10 else 1.0)(steps, rate), grid=grid, rungs=(10, 40))
    assert choice.rate == 1.0
    assert (40, 1.0) in runs
    assert choice.added == (10.0,)  # 1 was on the grid, 10 was not


def test_what_was_narrowed_away_comes_back_as_it_was_in_an_uneven_grid() -> None:
    grid = (3e-4, 1e-3, 3e-3, 1e-2)
    choice, runs = run(lambda steps, rate: bowl(3e-3 if steps == 10 else 3e-4)(steps, rate), grid=grid, rungs=(10, 40))
    assert (40, 3e-4) in runs  # and not 3.33e-4, the ratio of its neighbours further
    assert choice.rate == 3e-4
    assert choice.added == (9e-5,)
    choice, runs = run(lambda steps, rate: bowl(1e-3 if steps == 10 else 4e-3)(steps, rate), grid=grid, rungs=(10, 40))
    assert (choice.rate, choice.added) == (3e-3, ())
    assert runs[-1] == (40, 1e-2)


@pytest.mark.parametrize("order", [(1e-1, 1e-3, 1e-2), (1e-2, 1e-1, 1e-3)])
def test_the_order_of_the_grid_does_not_matter(order: tuple[float, ...]) -> None:
    assert run(bowl(1e-2), grid=order)[0].tried == run(bowl(1e-2))[0].tried
