"""The words of the report, explained once for every form of it."""

from __future__ import annotations

from localora.lab.compare.statistics.verdict import MEANINGS

READING: dict[str, str] = {
    **MEANINGS,
    "difference, interval": (
        "method minus baseline, paired by seed and, where answers are known, by test item; the interval accounts for "
        "both being samples. Losses that are known a run only are paired by seed: with three seeds the interval is wide"
    ),
    "contrast": "two methods of the plan against each other; p corrected over the contrasts of the table",
    "p (Holm)": "of no difference, corrected over all methods of the table",
    "p (tie)": "of a difference of at least the margin (two one-sided tests), corrected the same way; small for a tie",
    "McNemar by seed": "exact p of each seed alone, uncorrected; it knows nothing of the spread between seeds",
    "of LoRA": "trainable parameters over those of LoRA at the plan's r; in brackets the label of one that differs",
    "plateau": "the rates whose validation loss is within the margin of the best, and the ratio of its ends",
    "effective rank": "median over layers of exp(entropy of the singular values) of the update",
    "exported rank": "of the exact plain-LoRA copy; LoRA's own for LoRA",
}
