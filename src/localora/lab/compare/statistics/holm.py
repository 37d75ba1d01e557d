"""Holm's correction: the chance of even one false finding among all stays below the level."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: with p sorted, max over j <= i of (k - j) p_j, at most 1 (Holm, 1979)."""
    k = len(p_values)
    adjusted = [0.0] * k
    highest = 0.0
    for rank, index in enumerate(sorted(range(k), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (k - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
