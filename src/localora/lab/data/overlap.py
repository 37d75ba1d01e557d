"""Do two sets of examples share a problem?"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from localora.lab.data.example import DataError, Example

# Marks that may differ between two copies of a text. Operators stay: "5 - 3" and "5 + 3" are two problems.
_PUNCTUATION = re.compile(r"""[.,;:!?"'`()\[\]{}]""")


class OverlapError(DataError):
    """Held-out examples whose prompt is also trained on."""


def normalise(text: str) -> str:
    """Lower case, one form of Unicode, single spaces, a space for punctuation (1.5 is not 15)."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_PUNCTUATION.sub(" ", text).split())


def prompt_hash(example: Example) -> str:
    """SHA-256 of the normalised prompt with its choices (in any order); of the text, where nothing is prompt."""
    parts = [normalise(example.prompt or example.completion), *sorted(normalise(choice) for choice in example.choices)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check_disjoint(train: Iterable[Example], held_out: Iterable[Example]) -> None:
    """Raise if any held-out example has the prompt_hash of a training example.

    Raises:
        OverlapError: names how many, and up to five ids.
    """
    seen = {prompt_hash(example) for example in train}
    shared = [example.id for example in held_out if prompt_hash(example) in seen]
    if shared:
        ids = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
        raise OverlapError(
            f"{len(shared)} held-out example(s) have the prompt of a training example ({ids}); "
            "remove them from one of the two files, or give one file only and let it be split"
        )
