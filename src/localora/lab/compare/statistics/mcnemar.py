"""McNemar's test of two methods' answers to the same questions: what both got right, or both wrong, says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class McNemar:
    """b: the method alone is right; c: the baseline alone is. p of the exact and of the chi-square test."""

    b: int
    c: int
    exact: float
    chi_square: float


def mcnemar(method: Sequence[bool], baseline: Sequence[bool]) -> McNemar:
    """Exact (binomial) and chi-square with continuity correction, (|b - c| - 1)^2 / (b + c).

    Raises:
        ValueError: answers to different numbers of questions.
    """
    pairs = list(zip(method, baseline, strict=True))
    b = sum(ours and not theirs for ours, theirs in pairs)
    c = sum(theirs and not ours for ours, theirs in pairs)
    if b + c == 0:
        return McNemar(0, 0, 1.0, 1.0)
    exact = stats.binomtest(b, b + c, 0.5).pvalue
    statistic = max(0, abs(b - c) - 1) ** 2 / (b + c)
    return McNemar(b, c, float(exact), float(stats.chi2.sf(statistic, 1)))
