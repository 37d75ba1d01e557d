"""From differences to one word a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from localora.lab.compare.statistics.equivalence import equivalence_p
from localora.lab.compare.statistics.holm import holm
from localora.lab.compare.statistics.paired import Difference

Verdict = Literal["better", "tie", "worse", "undecided"]
MEANINGS: dict[str, str] = {
    "better": "differs for the better, all methods' tests taken together, and by more than the margin can hide",
    "tie": "the difference is smaller than the margin, whichever way it goes",
    "worse": "differs for the worse, in the same sense",
    "undecided": "neither is shown: more seeds or more test items would be needed",
}


@dataclass(frozen=True)
class Judged:
    """A method's difference from the baseline, with p-values corrected over all methods, and the verdict."""

    difference: Difference
    p_holm: float
    p_tie: float
    verdict: Verdict


def judge(
    differences: Sequence[Difference], margin: float, confidence: float, *, higher_is_better: bool
) -> list[Judged]:
    """A verdict for each difference; both tests are corrected over all of them by Holm's method.

    A difference that is significant and yet shown to be within the margin is a tie.
    """
    level = 1 - confidence
    p_differs = holm([difference.p for difference in differences])
    p_ties = holm([equivalence_p(difference, margin) for difference in differences])
    judged = []
    for difference, p_differ, p_tie in zip(differences, p_differs, p_ties, strict=True):
        verdict: Verdict = "undecided"
        if p_tie < level:
            verdict = "tie"
        elif p_differ < level:
            verdict = "better" if (difference.mean > 0) == higher_is_better else "worse"
        judged.append(Judged(difference, p_differ, p_tie, verdict))
    return judged
