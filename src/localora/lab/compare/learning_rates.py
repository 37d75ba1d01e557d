"""Which learning rate a method gets, and what must be run to know: a pure function of what is known already.

The grid is run; while the best value lies at an edge, one value more is added beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DIVERGED = math.inf  # as a loss: the run's own loss stopped being a number, which is a result


@dataclass(frozen=True)
class Choice:
    """The chosen rate and how it came about."""

    rate: float | None  # None: every rate diverged
    at_edge: bool  # nothing beyond it was tried on one side: the grid was too narrow, and could not be widened more
    added: tuple[float, ...]  # values beyond the plan's grid
    tried: dict[float, float]  # rate -> validation loss, infinite where the run diverged

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


def choose_rate(grid: Sequence[float], widen: int, loss: Callable[[float], float | None]) -> Choice | list[float]:
    """The choice, or the rates to be run first. Ties go to the lower rate.

    Args:
        widen: at most so many values are added to the grid.
        loss: the validation loss at a rate; None where it is not known.
    """
    rates, added = sorted(grid), list[float]()
    while True:
        known = {rate: loss(rate) for rate in rates}
        missing = [rate for rate, value in known.items() if value is None]
        if missing:
            return missing
        tried = {rate: value for rate, value in known.items() if value is not None}
        best = min(rates, key=lambda rate: (tried[rate], rate))
        if tried[best] == DIVERGED:
            best = rates[0]  # the only way left is down
        beyond = _beyond(rates, best)
        if beyond is None or len(added) == widen:
            rate = best if tried[best] < DIVERGED else None
            return Choice(rate, at_edge=beyond is not None, added=tuple(added), tried=tried)
        added.append(beyond)
        rates = sorted([*rates, beyond])


def _beyond(rates: Sequence[float], best: float) -> float | None:
    """The value to add when the best is at an edge, one ratio further; None when it is not."""
    if best not in (rates[0], rates[-1]):
        return None
    inner = rates[1] if best == rates[0] else rates[-2]
    return float(f"{best * best / inner:.3g}")
