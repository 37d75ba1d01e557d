"""The training sets: real mathematics alone, and a mixture of three families in equal shares."""

from __future__ import annotations

import random
from pathlib import Path

from localora.lab.data.example import Example
from localora.lab.data.load import load_task
from localora.lab.recipe.data_spec import DataSpec

COMMONSENSE = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "siqa")
FAMILIES = {
    "math": ("math/gsm8k_train.jsonl",),
    "commonsense": tuple(f"commonsense/{task}_train.jsonl" for task in COMMONSENSE),
    "code": ("code/code_instruct_train.jsonl",),
}
SETS = {"math": ("math",), "mixture": ("math", "commonsense", "code")}


def examples(name: str, folder: Path, count: int, seed: int) -> list[Example]:
    """`count` shuffled examples of the set called `name`: as many from each of its families, drawn over their files."""
    draw = random.Random(seed)
    families = SETS[name]
    chosen: list[Example] = []
    for place, family in enumerate(families):
        pool = [example for file in FAMILIES[family] for example in load_task(DataSpec(path=str(folder / file))).train]
        chosen += draw.sample(pool, count // len(families) + (place < count % len(families)))
    draw.shuffle(chosen)
    return chosen
