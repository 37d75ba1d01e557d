"""The words of the report, explained once for every form of it."""

from __future__ import annotations

from localora.lab.compare.statistics.verdict import MEANINGS

READING: dict[str, str] = {
    **MEANINGS,
    "difference, interval": (
        "method minus baseline, paired by seed and by test item; the interval accounts for both being samples. What "
        "seeds do is pooled over the methods of the table"
    ),
    "primary comparison": "a pair that the plan names as what it is made for; p corrected over these alone",
    "contrast": "two further methods of the plan against each other",
    "p (Holm)": "of no difference, corrected over all tests of the report: methods, headroom, contrasts, every table",
    "p (tie)": "of a difference of at least the margin (two one-sided tests), corrected the same way; small for a tie",
    "McNemar by seed": "exact p of each seed alone, uncorrected; it knows nothing of the spread between seeds",
    "trainable": ("parameters, and their share of LoRA's at the plan's r; the label of another budget is in brackets"),
    "stored": "parameters of the adapter in the end, with the frozen terms of its events",
    "plateau": "the rates whose validation loss is within the margin of the best, and the ratio of its ends",
    "effective rank": "median over layers of exp(entropy of the singular values) of the update",
    "exported rank": (
        "of the update as plain LoRA, exactly; in brackets the rank that the file is padded to with zeros, if another"
    ),
    "gain, loss": "of a watched plan: by how much the test loss fell, and by how much those of watched tasks grew",
}
