"""Which learning rate a method gets, and what must be run to know: a pure function of what is known already.

The grid is run; while the best value lies at an edge, one value more is added beyond it. Short runs (rungs) may narrow
the grid first: of each rung, the best and its two neighbours go on to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DIVERGED = math.inf  # as a loss: the run's own loss stopped being a number, which is a result

Losses = Callable[[int, float], float | None]  # (steps, rate) -> validation loss; None where it is not known


@dataclass(frozen=True)
class Needs:
    """Runs to make before the rate can be chosen: (steps, rate)."""

    runs: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Choice:
    """The chosen rate and how it came about.

    Attributes:
        rate: None where every rate diverged.
        at_edge: no value beyond it was tried on one side: the grid was not wide enough, and could not be widened more.
        added: values beyond the plan's grid.
        tried: rate -> validation loss of the last rung, infinite where the run diverged.
    """

    rate: float | None
    at_edge: bool
    added: tuple[float, ...]
    tried: dict[float, float]

    def sentence(self) -> str:
        """What the report says."""
        if self.rate is None:
            return "every learning rate diverged"
        text = f"{self.rate:g} of {', '.join(f'{rate:g}' for rate in self.tried)}"
        if self.added:
            text += f"; the grid was widened by {', '.join(f'{rate:g}' for rate in self.added)}"
        if self.at_edge:
            text += "; still at the edge of the grid: a better rate may lie beyond"
        return text


def choose_rate(grid: Sequence[float], rungs: Sequence[int], widen: int, losses: Losses) -> Needs | Choice:
    """The next runs to make, or the choice. `rungs` are steps, the last ones decide; ties go to the lower rate."""
    candidates, added = sorted(grid), []
    for number, steps in enumerate(rungs):
        left = widen
        while True:
            known = {rate: losses(steps, rate) for rate in candidates}
            missing = [(steps, rate) for rate, loss in known.items() if loss is None]
            if missing:
                return Needs(tuple(missing))
            tried = {rate: loss for rate, loss in known.items() if loss is not None}
            best = min(candidates, key=lambda rate: (tried[rate], rate))
            if tried[best] == DIVERGED:
                best = candidates[0]  # the only way left is down
            beyond = _beyond(candidates, best, grid)
            if beyond is None or left == 0:
                break
            if beyond not in grid:  # a rung may have narrowed it away
                added.append(beyond)
            candidates = sorted([*candidates, beyond])
            left -= 1
        if tried[best] == DIVERGED:
            return Choice(None, at_edge=True, added=tuple(added), tried=tried)
        if number < len(rungs) - 1:
            at = candidates.index(best)
            candidates = candidates[max(0, at - 1) : at + 2]
    return Choice(best, at_edge=beyond is not None, added=tuple(added), tried=tried)


def _beyond(rates: Sequence[float], best: float, grid: Sequence[float]) -> float | None:
    """The value to add when the best is at an edge: the grid's next, or one ratio further; None when it is not."""
    if best == rates[0]:
        further = float(f"{best * rates[0] / rates[1]:.3g}")
        return max((rate for rate in grid if rate < best), default=further)
    if best == rates[-1]:
        further = float(f"{best * rates[-1] / rates[-2]:.3g}")
        return min((rate for rate in grid if rate > best), default=further)
    return None
