'''Small Python functions on lists of integers, with unit tests.

    def collect(numbers):
        """Keep the numbers above 3, then multiply each by 2. Return the sum."""
        numbers = [n for n in numbers if n > 3]
        numbers = [n * 2 for n in numbers]
        return sum(numbers)

The prompt ends with the docstring; the completion is the body. Difficulty is the largest number of steps before
the return; a function has 1 to `difficulty`. The key is the steps with their numbers and what is returned. The
tests' expected values come from the steps as Python callables, not from the body's text, so running the body
checks it.
'''

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from localora.lab.data.example import Example
from localora.lab.data.generated.problem import Problem

_NAMES = ("collect", "compute", "process", "transform", "solve", "evaluate", "work_out", "handle")
_TESTS = 4

Numbers = list[int]


class _Step(NamedTuple):
    words: str
    code: str  # an expression over `numbers`
    run: Callable[[Numbers, int], Numbers]
    constants: range  # of the number k in words and code; one value where there is none


_STEPS = (
    _Step(
        "keep the numbers above {k}",
        "[n for n in numbers if n > {k}]",
        lambda xs, k: [x for x in xs if x > k],
        range(-9, 16),
    ),
    _Step(
        "keep the numbers below {k}",
        "[n for n in numbers if n < {k}]",
        lambda xs, k: [x for x in xs if x < k],
        range(-9, 16),
    ),
    _Step(
        "keep the even numbers",
        "[n for n in numbers if n % 2 == 0]",
        lambda xs, _: [x for x in xs if x % 2 == 0],
        range(1),
    ),
    _Step(
        "keep the odd numbers",
        "[n for n in numbers if n % 2 == 1]",
        lambda xs, _: [x for x in xs if x % 2 == 1],
        range(1),
    ),
    _Step("add {k} to each", "[n + {k} for n in numbers]", lambda xs, k: [x + k for x in xs], range(1, 31)),
    _Step(
        "subtract {k} from each",
        "[n - {k} for n in numbers]",
        lambda xs, k: [x - k for x in xs],
        range(1, 31),
    ),
    _Step("multiply each by {k}", "[n * {k} for n in numbers]", lambda xs, k: [x * k for x in xs], range(2, 21)),
    _Step("square each", "[n * n for n in numbers]", lambda xs, _: [x * x for x in xs], range(1)),
    _Step("drop the first {k}", "numbers[{k}:]", lambda xs, k: xs[k:], range(2, 5)),
    _Step("take the first {k}", "numbers[:{k}]", lambda xs, k: xs[:k], range(2, 5)),
    _Step("reverse the list", "numbers[::-1]", lambda xs, _: list(reversed(xs)), range(1)),
    _Step("sort the numbers", "sorted(numbers)", lambda xs, _: sorted(xs), range(1)),
)
_RESULTS: tuple[tuple[str, str, Callable[[Numbers], Any]], ...] = (
    ("the list", "numbers", lambda xs: xs),
    ("the sum", "sum(numbers)", sum),
    ("how many there are", "len(numbers)", len),
    ("the largest, or 0 if there is none", "max(numbers, default=0)", lambda xs: max(xs, default=0)),
    ("the smallest, or 0 if there is none", "min(numbers, default=0)", lambda xs: min(xs, default=0)),
)


def problem(random: Random, difficulty: int) -> Problem:
    """One function of 1 to `difficulty` steps, with four asserts."""
    steps = [(step, random.choice(step.constants)) for step in random.choices(_STEPS, k=random.randint(1, difficulty))]
    result_words, result_code, result = random.choice(_RESULTS)
    name = random.choice(_NAMES)

    words = ", then ".join(step.words.format(k=k) for step, k in steps)
    prompt = f'def {name}(numbers):\n    """{words[0].upper()}{words[1:]}. Return {result_words}."""'
    lines = [f"numbers = {step.code.format(k=k)}" for step, k in steps] + [f"return {result_code}"]
    completion = "".join(f"\n    {line}" for line in lines)

    asserts = []
    for _ in range(_TESTS):
        given = [random.randint(-20, 30) for _ in range(random.randint(5, 9))]
        value = given
        for step, k in steps:
            value = step.run(value, k)
        asserts.append(f"assert {name}({given}) == {result(value)}")
    key = "functions:" + "/".join([*(f"{step.code}:{k}" for step, k in steps), result_code])
    return Problem(key, Example("", prompt, completion, tests="\n".join(asserts)))
