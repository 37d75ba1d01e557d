"""The difference of two methods that ran with the same seeds on the same items.

Shape legend
    G   methods of a table
    S   seeds
    N   test items; 1 where only a run's mean is known
    y_GSN (G, S, N)   what each method measured: a loss, or 0 and 1 for wrong and right answers
    d_SN  (S, N)      the difference of two of them

The model is y_gsi = mu_g + (seed s) + (item i) + a_gs + b_gi + e_gsi: how a method trains differs by seed (a), what it
is good at by item (b), and the rest is noise (e). Seeds and items are crossed, so that neither is counted more often
than it was drawn. For the difference d of two methods, with the mean squares of the two-way analysis of variance,

    Var(mean of d) = (MS_N + max(0, MS_S - MS_E)) / (S N)

where MS_N (items) is the pair's own, of N - 1 degrees of freedom. MS_S (seeds) has only S - 1 of them, so that one pair
in ten would be called certain by the luck of three seeds that agree: it is pooled over the methods of the table, and
the pair's own is taken where that is larger, since methods do differ in how steadily they train. Degrees of freedom are
Satterthwaite's, and never fewer than S - 1. `benchmarks/verdicts.py` shows how often this errs, and what it finds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Mean difference (method minus baseline) with its interval at the confidence asked for."""

    mean: float  # positive where the method's value is the higher
    low: float
    high: float
    se: float  # standard error of the mean
    df: float  # its degrees of freedom
    p: float  # two-sided, of no difference


@dataclass(frozen=True)
class Spread:
    """What seeds do to a difference of two methods: mean squares of the method-by-seed effect, and of what is left."""

    seeds: float
    rest: float
    df: int


def pooled_spread(y_GSN: np.ndarray) -> Spread:
    """Of a difference of any two of the methods, from all of them; of two methods it is that of their difference.

    Raises:
        ValueError: fewer than two methods or two seeds.
    """
    if y_GSN.ndim != 3 or min(y_GSN.shape[:2]) < 2:
        raise ValueError(f"a spread needs at least 2 methods and 2 seeds, got {y_GSN.shape}")
    G, S, N = y_GSN.shape
    r_GSN = y_GSN - y_GSN.mean(axis=0)
    r_GSN = r_GSN - r_GSN.mean(axis=(1, 2), keepdims=True)
    a_GS, b_GN = r_GSN.mean(axis=2), r_GSN.mean(axis=1)
    e_GSN = r_GSN - a_GS[:, :, None] - b_GN[:, None, :]
    df = (G - 1) * (S - 1)
    # Twice: of a difference of two methods, not of one.
    rest = 2 * float((e_GSN**2).sum()) / (df * (N - 1)) if N > 1 else 0.0
    return Spread(2 * N * float((a_GS**2).sum()) / df, rest, df)


def difference(d_SN: np.ndarray, spread: Spread, confidence: float, floor: float = 0.0) -> Difference:
    """Student's interval of the mean of `d_SN` over seeds and items.

    Args:
        spread: of the table that the two methods belong to.
        floor: least standard error; see :func:`floor_of_answers`.

    Where nothing was seen to vary there is no standard error to judge by: p is then that of all S seeds agreeing in
    sign by chance, 2 / 2^S.

    Raises:
        ValueError: fewer than two seeds, for which there is no spread.
    """
    if d_SN.ndim != 2 or len(d_SN) < 2:
        raise ValueError(f"a difference needs at least 2 seeds, got {d_SN.shape}")
    S, N = d_SN.shape
    mean = float(d_SN.mean())
    MS_S = max(spread.seeds, N * float(d_SN.mean(axis=1).var(ddof=1)))
    MS_N = S * float(d_SN.mean(axis=0).var(ddof=1)) if N > 1 else 0.0
    V = MS_N + max(0.0, MS_S - spread.rest)
    se = max(floor, math.sqrt(V / (S * N)))
    if se == 0:
        return Difference(mean, mean, mean, 0.0, S - 1, 1.0 if mean == 0 else 2.0 ** (1 - S))
    parts = [(MS_N, N - 1), *([(MS_S, spread.df), (spread.rest, spread.df * (N - 1))] if V > MS_N else [])]
    of_parts = sum(square**2 / df for square, df in parts if df)
    df = max(S - 1.0, V**2 / of_parts if of_parts else 0.0)
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * se
    return Difference(mean, mean - half, mean + half, se, df, float(2 * stats.t.sf(abs(mean) / se, df)))


def floor_of_answers(N: int) -> float:
    """The least standard error of a difference of right and wrong answers to N items: 1 / (N + 2).

    That the same answers were given to all of them does not prove it of others; adding half an item for and half one
    against leaves so much (Agresti and Min 2005, Statistics in Medicine 24:729).
    """
    return 1 / (N + 2)
