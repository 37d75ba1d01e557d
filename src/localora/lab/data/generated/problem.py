"""What every generator shares: problems with a key, and splits that partition the space of keys.

A key names a problem by its parameters, without its wording. Its hash, not a random draw, says which split the
problem belongs to; so a problem trained on is in no test split, of any seed, size or wording.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import NamedTuple

from localora.lab.data.example import DataError, Example


class Problem(NamedTuple):
    """An example whose id is still empty, and the key that decides its split."""

    key: str
    example: Example


Generator = Callable[[Random, int], Problem]  # (random numbers, difficulty) -> problem

_MISSES_ALLOWED = 20_000  # draws in a row without a new problem of the split; the rarest split gets one draw in ten


def split_of(key: str) -> str:
    """The split that the problem `key` belongs to: train 8 in 10, validation and test 1 in 10 each."""
    digit = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return "train" if digit < 8 else "validation" if digit == 8 else "test"


def draw(generator: Generator, difficulty: int, split: str, size: int, seed: int, name: str) -> list[Example]:
    """`size` examples of one split with different prompts, the same for the same arguments on every machine.

    Raises:
        DataError: the difficulty has fewer different problems.
    """
    random = Random(f"{name}/{difficulty}/{split}/{seed}")
    examples: list[Example] = []
    prompts: set[str] = set()
    misses = 0
    while len(examples) < size:
        problem = generator(random, difficulty)
        if split_of(problem.key) != split or problem.example.prompt in prompts:
            misses += 1
            if misses > _MISSES_ALLOWED:
                raise DataError(
                    f"{name} of difficulty {difficulty} has about {len(examples)} different {split} "
                    f"problems, {size} were asked for; lower {split}_size or raise difficulty"
                )
            continue
        misses = 0
        prompts.add(problem.example.prompt)
        examples.append(replace(problem.example, id=f"{name}-{split}-{len(examples)}"))
    return examples
