"""Seeded splits and subsets that depend on the texts alone, not on their order in the file; and whether two overlap."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

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


def split_off(
    examples: Sequence[Example], size: int | None, seed: int, name: str
) -> tuple[list[Example], list[Example]]:
    """Cut `examples` into (rest, held out): `size` of them, default a tenth; equal prompts stay together.

    The prompts come in the order of a seeded hash; so many are held out that `size` is reached.

    Raises:
        DataError: nothing would be left of one side.
    """
    wanted = size if size is not None else max(1, len(examples) // 10)
    keys = [prompt_hash(example) for example in examples]
    by_prompt, held, count = Counter(keys), set(), 0
    for key in sorted(by_prompt, key=lambda key: _rank(key, seed)):
        if count >= wanted:
            break
        held.add(key)
        count += by_prompt[key]
    rest = [example for example, key in zip(examples, keys, strict=True) if key not in held]
    if not rest:
        raise DataError(
            f"cannot split {wanted} {name} example(s) off {len(examples)} with {len(by_prompt)} different "
            f"prompts: nothing is left; give more data, a smaller {name}_size, or a {name} file"
        )
    return rest, [example for example, key in zip(examples, keys, strict=True) if key in held]


def subset(examples: Sequence[Example], size: int | None, seed: int) -> list[Example]:
    """At most `size` examples, drawn by seeded hash and left in their order; None is all of them."""
    if size is None or size >= len(examples):
        return list(examples)
    order = sorted(range(len(examples)), key=lambda i: (_rank(prompt_hash(examples[i]), seed), i))
    return [examples[i] for i in sorted(order[:size])]


def _rank(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()
