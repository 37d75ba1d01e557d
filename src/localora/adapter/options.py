"""What an option of a config is: default, range and help, stated once in its dataclass and read by everybody else.

Configs check themselves by it, recipes build their sections from it, and the reference prints it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union

from localora.errors import ConfigError

LARGEST_RANK = 2**16  # no matrix to be adapted has more rows or columns
LARGEST_INT = 2**31 - 1  # of any option: more is a typing error, or a hostile file
_COMPARE = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}


def option(default: Any, help: str, *, recipe: bool = True, **bounds: float) -> Any:
    """A dataclass field with its help and range.

    Args:
        default: the value, or a function without arguments that makes one.
        recipe: whether recipes of `localora train` have it.
        bounds: `ge`, `gt`, `le`, `lt`, of the number, or of each number in a list or dict.
    """
    metadata = {"help": help, "bounds": bounds, "recipe": recipe}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One option of a config class, as its dataclass states it."""

    name: str
    hint: Any
    default: Any
    help: str
    bounds: dict[str, float]
    recipe: bool

    def check(self, value: object) -> None:
        """Raise ConfigError unless the value is of the option's type and in its range."""
        if not _is(value, self.hint):
            raise ConfigError(f"{self.name} must be {_words(self.hint)}{self._range()}, got {shown(value)}")
        for key, number in _numbers(self.name, value):
            if isinstance(number, float) and not math.isfinite(number) and self.bounds:
                raise ConfigError(f"{key} must be a finite number{self._range()}, got {number}")
            if isinstance(number, int) and abs(number) > LARGEST_INT:
                raise ConfigError(f"{key} must be at most {LARGEST_INT}, got a number of {len(str(number))} digits")
            if not self._within(number):
                integer = "an integer" if isinstance(number, int) and "float" not in str(self.hint) else "a number"
                raise ConfigError(f"{key} must be {integer}{self._range()}, got {number}")

    def _within(self, number: float) -> bool:
        return all(_COMPARE[kind](number, bound) for kind, bound in self.bounds.items())

    def _range(self) -> str:
        b = self.bounds
        if ("ge" in b or "gt" in b) and ("le" in b or "lt" in b):
            low = f"({b['gt']:g}" if "gt" in b else f"[{b['ge']:g}"
            high = f"{b['lt']:g})" if "lt" in b else f"{b['le']:g}]"
            return f" in {low}, {high}"
        if "ge" in b:
            return f" of at least {b['ge']:g}"
        if "gt" in b:
            return f" above {b['gt']:g}"
        return f" of at most {b['le']:g}" if "le" in b else ""


def options_of(config_class: Any) -> dict[str, Option]:
    """All options of a config class by name, those that PEFT's base config brings among them."""
    return _options_of(config_class)  # a cached function would not take a class whose objects have no hash


@cache
def _options_of(config_class: Any) -> dict[str, Option]:
    hints, of_others = typing.get_type_hints(config_class), {"help": "", "bounds": {}, "recipe": False}
    return {
        field.name: Option(field.name, hints[field.name], default_of(field), **{**of_others, **field.metadata})
        for field in dataclasses.fields(config_class)
    }


def default_of(field: dataclasses.Field[Any]) -> Any:
    """What a dataclass's field has when it is left out."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word most like this one; empty if none is."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _is(value: object, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_is(value, argument) for argument in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is list:
        return isinstance(value, (list, tuple, set)) and all(_is(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(k, arguments[0]) and _is(v, arguments[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint is type(None) else isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(argument) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is list:
        return f"a list of {_bare(arguments[0])}s"
    if origin is dict:
        return f"a dict of {_bare(arguments[0])} to {_bare(arguments[1])}"
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "None"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _bare(hint: Any) -> str:
    return _words(hint).removeprefix("an ").removeprefix("a ")


def _numbers(name: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(f"{name}[{key!r}]", item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(name, item)


def shown(value: object) -> str:
    """For a message: as Python writes it, but not for ever."""
    text = repr(value) if not isinstance(value, int) or abs(value) <= LARGEST_INT else "a very large number"
    return text if len(text) <= 80 else text[:77] + "..."
