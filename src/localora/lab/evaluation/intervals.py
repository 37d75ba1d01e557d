"""95 % intervals of what a test set measures."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest

_DRAWS = 2000


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share; sound at 0 and at 1, unlike the normal approximation."""
    low, high = binomtest(right, count).proportion_ci(confidence_level=0.95, method="wilson")
    return float(low), float(high)


def bootstrap_ratio(sums: list[float], counts: list[int], seed: int = 0) -> tuple[float, float]:
    """Percentile interval of sum(sums) / sum(counts) over items drawn anew: of a mean per token, say."""
    top, bottom = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(top), size=(_DRAWS, len(top)))
    low, high = np.quantile(top[drawn].sum(1) / bottom[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)
