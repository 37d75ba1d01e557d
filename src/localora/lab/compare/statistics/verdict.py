"""From differences to one word each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from localora.lab.compare.statistics.paired import Difference

Verdict = Literal["better", "tie", "worse", "undecided"]
MEANINGS: dict[str, str] = {
    "better": "differs for the better, all tests of its family taken together, and is larger than the margin",
    "tie": "the difference is smaller than the margin, whichever way it goes",
    "worse": "differs for the worse, in the same sense",
    "undecided": "neither is shown: more seeds or more test items would be needed",
}


@dataclass(frozen=True)
class Case:
    """A difference to be judged: below `margin` it does not matter."""

    difference: Difference
    margin: float
    higher_is_better: bool


@dataclass(frozen=True)
class Judged:
    """A difference between two methods, with p-values corrected over its family, and the verdict."""

    difference: Difference
    p_holm: float
    p_tie: float
    verdict: Verdict


def judge(cases: Sequence[Case], confidence: float) -> list[Judged]:
    """A verdict for each case of a family of tests; both tests are corrected over all of them by Holm's method.

    A difference that is significant and yet shown to be within the margin is a tie; one that is significant and was
    found to be within the margin, without being shown to be, is undecided.
    """
    level = 1 - confidence
    p_differs = holm([case.difference.p for case in cases])
    p_ties = holm([equivalence_p(case.difference, case.margin) for case in cases])
    judged = []
    for case, p_differ, p_tie in zip(cases, p_differs, p_ties, strict=True):
        mean = case.difference.mean
        verdict: Verdict = "undecided"
        if p_tie < level:
            verdict = "tie"
        elif p_differ < level and abs(mean) > case.margin:
            verdict = "better" if (mean > 0) == case.higher_is_better else "worse"
        judged.append(Judged(case.difference, p_differ, p_tie, verdict))
    return judged


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected so that the chance of even one false finding among all stays below the level.

    In the given order: with p sorted, max over j <= i of (k - j) p_j, at most 1 (Holm, 1979).
    """
    k = len(p_values)
    adjusted = [0.0] * k
    highest = 0.0
    for rank, index in enumerate(sorted(range(k), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (k - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def equivalence_p(difference: Difference, margin: float) -> float:
    """p of the hypothesis that the true difference is at least `margin` in size: small for a tie.

    Two one-sided tests (Schuirmann, 1987): a tie is a finding of its own, not a failure to find a difference.
    """
    if difference.se == 0:
        return 0.0 if abs(difference.mean) < margin else 1.0
    above = stats.t.sf((difference.mean + margin) / difference.se, difference.df)
    below = stats.t.cdf((difference.mean - margin) / difference.se, difference.df)
    return float(max(above, below))
