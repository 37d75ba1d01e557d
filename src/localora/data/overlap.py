"""Do two sets of examples share a problem?"""

from __future__ import annotations

from collections.abc import Iterable

from localora.data.example import DataError, Example


class OverlapError(DataError):
    """Held-out examples whose prompt is also trained on."""


def prompt_hash(example: Example) -> str:
    """SHA-256 of the normalised prompt with its choices (in any order)."""
    raise NotImplementedError


def check_disjoint(train: Iterable[Example], held_out: Iterable[Example]) -> None:
    """Raise if any held-out example has the prompt_hash of a training example.

    Raises:
        OverlapError: names how many, and up to five ids.
    """
    raise NotImplementedError
