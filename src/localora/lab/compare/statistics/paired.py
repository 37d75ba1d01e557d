"""The difference of two methods that ran with the same seeds on the same items.

Shape legend
    S   seeds
    N   test items
    d_SN (S, N)   difference of the two methods' scores: on one seed and item -1, 0 or 1 for right and wrong answers
    d_S  (S,)     difference of their losses, one a seed

The model is d_si = mu + a_s + b_i + e_si: training differs by seed, items by kind, and the rest is noise. Seeds and
items are crossed, so that neither is counted more often than it was drawn. With the mean squares of the two-way
analysis of variance, MS_S (seeds), MS_N (items) and MS_E (rest),

    Var(mean) = (MS_N + max(0, MS_S - MS_E)) / (S N)

and its degrees of freedom are Satterthwaite's. Few seeds make the interval wide, as they should.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

COUNTS_AT_A_TIME = 4_000_000  # how often each item is in each draw: 32 MB of them


@dataclass(frozen=True)
class Difference:
    """Mean difference (method minus baseline) with a confidence interval.

    Attributes:
        mean: positive where the method's value is the higher.
        low, high: of the interval at the confidence asked for.
        se, df: standard error and degrees of freedom of the mean.
        p: two-sided, of no difference.
    """

    mean: float
    low: float
    high: float
    se: float
    df: float
    p: float


def paired_scores(d_SN: np.ndarray, confidence: float, draws: int, seed: int) -> Difference:
    """Bootstrap interval of the mean of `d_SN` over items, clustered by seed.

    Each draw takes items with replacement, all seeds of an item together, and adds seed effects drawn from those
    found, shrunken to the variance the analysis gives them. The draws give the interval its shape; since they know
    nothing of how few seeds there were, it is stretched by the ratio of Student's quantile to the normal one.

    Where all of `d_SN` is the same number nothing was seen to vary, which N items do not prove of all others: the
    standard error is then 1 / (N + 2), what adding half an item for and half one against leaves of it (Agresti and Min
    2005, Statistics in Medicine 24:729).

    Raises:
        ValueError: fewer than two seeds or two items, for which there is no spread.
    """
    S, N = _checked(d_SN)
    mean = float(d_SN.mean())
    seed_effects, item_means = d_SN.mean(axis=1) - mean, d_SN.mean(axis=0)
    rest = d_SN - item_means - seed_effects[:, None]
    MS_S = N * float((seed_effects**2).sum()) / (S - 1)
    MS_N = S * float(((item_means - mean) ** 2).sum()) / (N - 1)
    MS_E = float((rest**2).sum()) / ((S - 1) * (N - 1))
    seed_part = max(0.0, MS_S - MS_E)
    se = math.sqrt((MS_N + seed_part) / (S * N))
    if se == 0:
        return _student(mean, 1 / (N + 2), N - 1, confidence)
    df = (MS_N + seed_part) ** 2 / (MS_S**2 / (S - 1) + MS_N**2 / (N - 1))

    random = np.random.default_rng(seed)
    shrunken = seed_effects * math.sqrt(seed_part / MS_S * S / (S - 1)) if MS_S > 0 else seed_effects
    drawn = _drawn_means(item_means, draws, random) + shrunken[random.integers(S, size=(draws, S))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    stretch = stats.t.ppf(1 - tail, df) / stats.norm.ppf(1 - tail)
    p = 2 * stats.t.sf(abs(mean) / se, df)
    return Difference(mean, mean + (low - mean) * stretch, mean + (high - mean) * stretch, se, df, float(p))


def paired_losses(d_S: np.ndarray, confidence: float) -> Difference:
    """Student's paired interval over seeds; losses are known a run, not an item.

    Raises:
        ValueError: fewer than two seeds.
    """
    if d_S.ndim != 1 or len(d_S) < 2:
        raise ValueError(f"a difference of losses needs at least 2 seeds, got {len(d_S)}")
    S, mean, se = len(d_S), float(d_S.mean()), float(d_S.std(ddof=1)) / math.sqrt(len(d_S))
    return _certain(mean) if se == 0 else _student(mean, se, S - 1, confidence)


def _student(mean: float, se: float, df: int, confidence: float) -> Difference:
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * se
    return Difference(mean, mean - half, mean + half, se, df, float(2 * stats.t.sf(abs(mean) / se, df)))


def _drawn_means(item_means: np.ndarray, draws: int, random: np.random.Generator) -> np.ndarray:
    """Means of `draws` samples of the items with replacement.

    Items of the same mean are drawn as one class, as often as all of them together: the same distribution, and of
    right and wrong answers there are only a few classes, however many items.
    """
    N = len(item_means)
    classes, sizes = np.unique(item_means, return_counts=True)
    at_a_time = max(1, COUNTS_AT_A_TIME // len(classes))
    parts = [
        random.multinomial(N, sizes / N, size=min(at_a_time, draws - done)) @ classes
        for done in range(0, draws, at_a_time)
    ]
    return np.concatenate(parts) / N


def _checked(d_SN: np.ndarray) -> tuple[int, int]:
    if d_SN.ndim != 2 or min(d_SN.shape) < 2:
        raise ValueError(f"a difference of scores needs at least 2 seeds and 2 items, got {d_SN.shape}")
    S, N = d_SN.shape
    return S, N


def _certain(mean: float) -> Difference:
    """The same difference of losses with every seed."""
    return Difference(mean, mean, mean, 0.0, math.inf, 1.0 if mean == 0 else 0.0)
