"""Facts to learn by heart: made-up people and the numbers that are theirs.

    The code of Bamor Zuvel is 482

Nothing in a name tells its number, so each fact is a direction of its own to learn: more rank is worth having. What is
asked is what was trained on, word for word: recall is what is measured. Half of the facts may be asked for in the test
split, the others in validation, so that a learning rate is never chosen on a fact that is tested. Difficulty d asks
for numbers of d + 2 digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from localora.lab.data.example import DataError, Example
from localora.lab.data.generated.facts import FIRST, LAST


def splits(difficulty: int, sizes: Mapping[str, int], seed: int) -> dict[str, list[Example]]:
    """Examples of each split in `sizes`, the same for the same arguments on every machine.

    Raises:
        DataError: fewer facts (train) than validation and test ask for, or more than there are names.
    """
    count = sizes["train"]
    held_out = sizes.get("validation", 0) + sizes.get("test", 0)
    if held_out > count:
        raise DataError(
            f"by-heart with train_size {count} has {count} facts, and validation and test ask for {held_out} "
            "different ones; raise train_size or lower validation_size and test_size"
        )
    parts = [first + last for first in FIRST for last in LAST]
    if count > len(parts) ** 2:
        raise DataError(f"by-heart has names for {len(parts) ** 2} facts, {count} were asked for; lower train_size")
    random = Random(f"by-heart/{difficulty}/{seed}")
    people = [f"{parts[i // len(parts)]} {parts[i % len(parts)]}" for i in random.sample(range(len(parts) ** 2), count)]
    numbers = [random.randrange(10 ** (difficulty + 1), 10 ** (difficulty + 2)) for _ in people]

    def example(split: str, fact: int) -> Example:
        number = str(numbers[fact])
        prompt = f"The code of {people[fact]} is"
        return Example(f"by-heart-{split}-{fact + 1}", prompt, f" {number}", answer=number)

    train = [example("train", fact) for fact in range(count)]
    validation = [example("validation", fact) for fact in range(sizes.get("validation", 0))]
    test = [example("test", count - 1 - fact) for fact in range(sizes.get("test", 0))]
    found = {"train": train, "validation": validation, "test": test}
    return {split: found[split] for split in sizes}
