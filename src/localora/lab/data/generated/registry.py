"""The generated tasks by name."""

from __future__ import annotations

from collections.abc import Mapping

from localora.lab.data.example import Example, Scorer
from localora.lab.data.generated import arithmetic, facts, functions
from localora.lab.data.generated.problem import Generator, draw

TASKS: dict[str, tuple[Generator, Scorer]] = {
    "arithmetic": (arithmetic.problem, Scorer.exact_match),
    "facts": (facts.problem, Scorer.multiple_choice),
    "functions": (functions.problem, Scorer.code),
}


def generate_task(
    name: str, difficulty: int, sizes: Mapping[str, int], seed: int
) -> tuple[dict[str, list[Example]], Scorer]:
    """Examples of each split in `sizes` (keys train, validation, test), and how the task is scored.

    Raises:
        DataError: more examples asked for than the difficulty has.
    """
    generator, scorer = TASKS[name]
    return {split: draw(generator, difficulty, split, size, seed, name) for split, size in sizes.items()}, scorer
