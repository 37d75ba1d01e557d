from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from localora.lab.evaluation.intervals import bootstrap_ratio, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (1, 3), (37, 100), (650, 1000)])
def test_wilson_is_scipys(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bootstrap_of_a_ratio_is_scipys():
    """Both draw items, a sum with its count; each end has a spread of its own from 2000 draws."""
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 40, 80)
    sums = counts * rng.gamma(2.0, 0.6, 80)
    found = bootstrap_ratio(list(sums), list(counts))
    expected = bootstrap(
        (sums, counts), lambda s, c, axis: s.sum(axis) / c.sum(axis), paired=True, vectorized=True,
        n_resamples=20_000, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    width = expected.high - expected.low
    assert found == pytest.approx((expected.low, expected.high), abs=0.06 * width)
    plain = sums / counts
    assert abs(found[0] - np.quantile(plain, 0.025)) > width  # it is no quantile of the items
    assert found == bootstrap_ratio(list(sums), list(counts))  # seeded
    assert found != bootstrap_ratio(list(sums), list(counts), seed=1)


def test_one_item_has_no_width():
    assert bootstrap_ratio([6.0], [3]) == (2.0, 2.0)
