"""Two one-sided tests: a tie is a finding of its own, not a failure to find a difference."""

from __future__ import annotations

from scipy import stats

from localora.lab.compare.statistics.paired import Difference


def equivalence_p(difference: Difference, margin: float) -> float:
    """p of the hypothesis that the true difference is at least `margin` in size: small for a tie (Schuirmann, 1987)."""
    if difference.se == 0:
        return 0.0 if abs(difference.mean) < margin else 1.0
    above = stats.t.sf((difference.mean + margin) / difference.se, difference.df)
    below = stats.t.cdf((difference.mean - margin) / difference.se, difference.df)
    return float(max(above, below))
