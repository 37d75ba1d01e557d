"""The generated tasks by name: those whose problems are drawn split by split, and facts that are to be remembered."""

from __future__ import annotations

from collections.abc import Mapping

from localora.lab.data.example import Example, Scorer
from localora.lab.data.generated import arithmetic, by_heart, facts, functions
from localora.lab.data.generated.problem import Generator, draw

TASKS: dict[str, tuple[Generator, Scorer]] = {
    "arithmetic": (arithmetic.problem, Scorer.exact_match),
    "facts": (facts.problem, Scorer.multiple_choice),
    "functions": (functions.problem, Scorer.code),
}
BY_HEART = "by-heart"


def generate_task(
    name: str, difficulty: int, sizes: Mapping[str, int], seed: int
) -> tuple[dict[str, list[Example]], Scorer]:
    """Examples of each split in `sizes` (keys train, validation, test), and how the task is scored.

    Raises:
        DataError: more examples asked for than the difficulty has.
    """
    if name == BY_HEART:
        return by_heart.splits(difficulty, sizes, seed), Scorer.exact_match
    generator, scorer = TASKS[name]
    return {split: draw(generator, difficulty, split, size, seed, name) for split, size in sizes.items()}, scorer
