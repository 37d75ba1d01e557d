"""Seeded splits and subsets that depend on the texts alone, not on their order in the file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from localora.lab.data.example import DataError, Example
from localora.lab.data.overlap import prompt_hash


def split_off(
    examples: Sequence[Example], size: int | None, seed: int, name: str
) -> tuple[list[Example], list[Example]]:
    """Cut `examples` into (rest, held out): `size` of them, default a tenth; equal prompts stay together.

    The prompts come in the order of a seeded hash; so many are held out that `size` is reached.

    Raises:
        DataError: nothing would be left of one side.
    """
    wanted = size if size is not None else max(1, len(examples) // 10)
    held: set[str] = set()
    count = 0
    by_prompt: dict[str, int] = {}
    for example in examples:
        key = prompt_hash(example)
        by_prompt[key] = by_prompt.get(key, 0) + 1
    for key in sorted(by_prompt, key=lambda key: _rank(key, seed)):
        if count >= wanted:
            break
        held.add(key)
        count += by_prompt[key]
    rest = [example for example in examples if prompt_hash(example) not in held]
    if not rest:
        raise DataError(
            f"cannot split {wanted} {name} example(s) off {len(examples)} with {len(by_prompt)} different "
            f"prompts: nothing is left; give more data, a smaller {name}_size, or a {name} file"
        )
    return rest, [example for example in examples if prompt_hash(example) in held]


def subset(examples: Sequence[Example], size: int | None, seed: int) -> list[Example]:
    """At most `size` examples, drawn by seeded hash and left in their order; None is all of them."""
    if size is None or size >= len(examples):
        return list(examples)
    order = sorted(range(len(examples)), key=lambda i: (_rank(prompt_hash(examples[i]), seed), i))
    return [examples[i] for i in sorted(order[:size])]


def _rank(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()
