"""Regular expressions in a config are matched against every layer's name: those that could take for ever are refused.

A pattern is measured by the ways in which it could match one name, since a search that fails tries them all: each
`.*` may end at any letter, each `?` is there or not, each alternative is another way, and what follows multiplies. A
repeat of something that can itself match in several ways has no useful bound.
"""

from __future__ import annotations

import math
import re
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from localora.adapter.options import shown
from localora.errors import ConfigError

MOST_PATTERNS = 1024  # each is tried on each layer: a layer an entry is enough, and 50,000 took minutes
NAME = 64  # letters of a layer's name
MOST_WAYS = 16 * NAME**5  # as of five `.*` and some alternatives: within seconds for all names of a model


def check_pattern(where: str, pattern: str, as_matched: str | None = None) -> None:
    """Raise ConfigError unless `pattern` is a regular expression that is matched in bounded time; `where` names it.

    `as_matched` is what PEFT makes of it.
    """
    try:
        ways = _ways(_parser.parse(as_matched or pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{where}: {shown(pattern)} is no regular expression: {error}") from None
    if ways > MOST_WAYS:
        raise ConfigError(
            f"{where}: {shown(pattern)} could take for ever to match: it repeats what can itself match in several "
            "ways, or has too many repeats. Name the layers, or use at most four of `.*` and no repeat of a repeat"
        )


def _ways(items: Any) -> float:
    return math.prod((_ways_of(operation, argument) for operation, argument in items), start=1.0)


def _ways_of(operation: Any, argument: Any) -> float:
    match str(operation):
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, body = argument
            return _repeated(least, most, _ways(body), body)
        case "BRANCH":
            return sum(_ways(branch) for branch in argument[1])
        case "ATOMIC_GROUP":
            return _ways(argument)
        case "SUBPATTERN" | "ASSERT" | "ASSERT_NOT":
            return _ways(argument[-1])
        case "GROUPREF_EXISTS":
            return _ways(argument[1]) + (_ways(argument[2]) if argument[2] else 1)
        case _:
            return 1.0


def _repeated(least: int, most: int, ways: float, body: Any) -> float:
    most = NAME if most is _constants.MAXREPEAT else min(most, NAME)
    shortest, longest = body.getwidth()
    if most > 1 and (ways > 1 or shortest != longest or shortest == 0):
        return math.inf if most > 2 else (1 + ways) ** most
    return max(1, most - min(least, most) + 1) * max(1.0, ways)
