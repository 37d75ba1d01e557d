"""Arithmetic word problems: someone has things, and gains, loses, multiplies or shares them.

    Question: Mia has 12 shells. Mia finds 7 more shells. How many shells does Mia have now?
    Answer: 12 + 7 = 19
    #### 19

Difficulty is the largest number of steps; a problem has 1 to `difficulty` of them. The key is the start and
the steps' operations and numbers, so that no calculation is in two splits, whatever its names and objects.
"""

from __future__ import annotations

from random import Random

from localora.lab.data.example import Example
from localora.lab.data.generated.problem import Problem

_NAMES = ("Mia", "Tom", "Ana", "Leo", "Sara", "Ben", "Nora", "Max", "Lucy", "Omar", "Ivy", "Sam")
_OBJECTS = ("apples", "shells", "books", "coins", "cards", "stamps", "pens", "eggs", "toys", "stones")
_SENTENCES = {
    "+": (
        "{name} finds {k} more {things}.",
        "{name} buys {k} more {things}.",
        "A friend gives {name} {k} {things}.",
    ),
    "-": ("{name} loses {k} {things}.", "{name} gives away {k} {things}.", "{name} sells {k} {things}."),
    "*": ("Then {name} gets {k} times as many {things}.", "The number of {things} grows {k} times."),
    "/": ("{name} shares the {things} equally among {k} boxes and keeps one box.",),
}
_LARGEST_FACTOR_OF = 30  # products stay below 200, sums of a few steps below 300


def problem(random: Random, difficulty: int) -> Problem:
    """One problem of 1 to `difficulty` steps; every intermediate result is a positive integer."""
    name, things = random.choice(_NAMES), random.choice(_OBJECTS)
    value = start = random.randint(2, 50)
    story, rationale, key = [f"{name} has {value} {things}."], [], [str(start)]
    for _ in range(random.randint(1, difficulty)):
        sign, k = _step(random, value)
        result = {"+": value + k, "-": value - k, "*": value * k, "/": value // k}[sign]
        story.append(random.choice(_SENTENCES[sign]).format(name=name, k=k, things=things))
        rationale.append(f"{value} {sign} {k} = {result}")
        key.append(f"{sign}{k}")
        value = result
    question = f"How many {things} does {name} have now?"
    prompt = f"Question: {' '.join([*story, question])}\nAnswer:"
    completion = " " + "\n".join([*rationale, f"#### {value}"])
    return Problem("arithmetic:" + "".join(key), Example("", prompt, completion, answer=str(value)))


def _step(random: Random, value: int) -> tuple[str, int]:
    divisors = [k for k in (2, 3, 4, 5) if value % k == 0 and value > k]
    signs = ["+"]
    signs += ["-"] if value > 2 else []
    signs += ["*"] if value <= _LARGEST_FACTOR_OF else []
    signs += ["/"] if divisors else []
    sign = random.choice(signs)
    if sign == "/":
        return sign, random.choice(divisors)
    return sign, {
        "+": random.randint(2, 40),
        "-": random.randint(2, max(2, min(40, value - 1))),
        "*": random.randint(2, 6),
    }[sign]
