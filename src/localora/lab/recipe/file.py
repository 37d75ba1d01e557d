"""From a YAML file to a recipe, validated in full before any work starts; each problem ends up in one plain line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from localora.adapter.options import nearest
from localora.lab.recipe.methods import METHOD_CLASSES, METHODS
from localora.lab.recipe.peft_methods import MethodBase
from localora.lab.recipe.schema import SECTIONS, Recipe, RecipeError, with_folder

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_NOT_DECIMAL = re.compile(r"[-+]?0[0-9_]+|.*:.*")

TEMPLATE = Path(__file__).with_name("template.yaml")  # what `localora init` prints


def load_recipe(path: str | Path, overrides: Sequence[str] = (), folder: str | Path | None = None) -> Recipe:
    """Read a YAML recipe, apply `section.key=value` overrides (values parsed as YAML), validate.

    `folder` is the output folder; it goes before the recipe's own.

    Raises:
        RecipeError: unreadable file, bad YAML, bad override, unknown key or bad value; lists every problem at once.
    """
    path = Path(path)
    recipe = validate_recipe(read_values(path, overrides, list(Recipe.model_fields)), str(path))
    return with_folder(recipe, folder or recipe.output.folder or Path("runs") / path.stem)


def validate_recipe(values: dict[str, Any], source: str = "recipe") -> Recipe:
    """Turn nested plain values into a recipe, or raise a RecipeError with one line per problem."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors(include_url=False)]
        raise RecipeError(source, *dict.fromkeys(problems)) from None


def method_section(values: dict[str, Any], overrides: Sequence[str] = ()) -> MethodBase:
    """A method's section alone, from plain values and `key=value` overrides; errors as :func:`validate_recipe`."""
    nested = {"method": values}
    for override in overrides:
        apply_override(nested, f"method.{override}")
    return validate_recipe({"model": {"name": "none"}, "data": {"task": "arithmetic"}, **nested}, "method").method


class _Loader(yaml.SafeLoader):
    """PyYAML without its surprises: the last of two equal keys would win, and 010 be 8, and 1:30 be 90."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            self._refuse(f"holds half of a surrogate pair ({error.object[error.start]!r}), no text", node)
        if node.tag in _NUMBERS and _NOT_DECIMAL.fullmatch(value):
            self._refuse(f"{value} is read as octal or base 60; write a decimal number, or quote a text", node)
        return value

    def _refuse(self, problem: str, node: yaml.Node) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        counts = Counter(key for key in keys if isinstance(key, Hashable))  # others are refused where they are read
        twice = sorted(str(key) for key, count in counts.items() if count > 1)
        if twice:
            self._refuse(f"key {', '.join(twice)} is given twice", node)
        return super().construct_mapping(node, deep)


def read_values(path: Path, overrides: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """The nested values of a YAML file with `key=value` overrides applied; `known` are the keys that an error names.

    Raises:
        RecipeError: unreadable file, bad YAML, or a bad override.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # no UTF-8, or a name that no file can have
        raise RecipeError(path, f"cannot be read: {error}") from error
    values = parse_yaml(text, str(path), known)
    for override in overrides:
        apply_override(values, override)
    return values


def parse_yaml(text: str, source: str, known: Sequence[str]) -> dict[str, Any]:
    """The mapping that a YAML text holds; `known` are the keys that an error names.

    Raises:
        RecipeError: bad YAML, a key given twice, or no mapping.
    """
    values = _load(text, source, "not valid YAML")
    if not isinstance(values, dict):
        raise RecipeError(source, f"must hold sections ({', '.join(known)})")
    return values


def _load(text: str, source: str, otherwise: str, *, numbered: bool = True) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark and numbered else ""
        raise RecipeError(source, f"{where}{otherwise}: {getattr(error, 'problem', None) or error}") from error
    except RecursionError:
        raise RecipeError(source, f"{otherwise}: nested too deeply") from None
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # PyYAML's, of a tag on a value it cannot read
        raise RecipeError(source, f"{otherwise}: a tag (!!) before another kind of value") from error
    except ValueError as error:  # Python's, of a number with thousands of digits, or a date such as 2026-02-31
        raise RecipeError(source, f"{otherwise}: {error}") from error


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one key in place, as `section.key=value` says.

    Raises:
        RecipeError: not of that form, or the value is no YAML.
    """
    source = f"--set {override}"
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(source, "write it as section.key=value, for example training.steps=50")
    value = _load(text, source, "the value is not valid YAML", numbered=False)
    *sections, last = key.split(".")
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise RecipeError(source, f"{name} is a value, not a section")
    values[last] = value


def explain(problem: Mapping[str, Any], loc: Sequence[Any], said_of_unknown: Callable[[], str]) -> str:
    """One line for one of pydantic's errors, at `loc` of the user's file."""
    kind, given, where = problem["type"], problem["input"], ".".join(map(str, loc))
    if kind == "extra_forbidden":
        return f"{where}: {said_of_unknown()}"
    if kind == "missing":
        return f"{where}: missing"
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if isinstance(given, (dict, list)) or kind == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where}: {message}, got {given!r}"


def unknown_key(key: str, known: Sequence[str]) -> str:
    return f"unknown key{nearest(key, known) or '; known: ' + ', '.join(known)}"


def _explain(problem: Mapping[str, Any]) -> str:
    loc, kind, given = list(problem["loc"]), problem["type"], problem["input"]
    method = None
    if loc[:1] == ["method"] and len(loc) > 1 and loc[1] in METHODS:
        method = loc.pop(1)  # pydantic names the chosen method in the path; the user's file has no such level
    if kind == "union_tag_invalid":
        name = given.get("name") if isinstance(given, dict) else given
        return f"method.name: {name!r} is no method{nearest(str(name), METHODS)}; known: {', '.join(METHODS)}"
    if kind == "union_tag_not_found":
        return f"method.name: missing; choose one of {', '.join(METHODS)}"
    return explain(problem, loc, lambda: _unknown_key(loc, method))


def _unknown_key(loc: list[Any], method: str | None) -> str:
    key = str(loc[-1])
    if method is not None:
        known = list(METHOD_CLASSES[method].model_fields)
        owners = [name for name, cls in METHOD_CLASSES.items() if key in cls.model_fields]
        if owners:
            return f"no setting of {method} (it belongs to {', '.join(owners)}); known: {', '.join(known)}"
    elif len(loc) == 1:
        known = list(Recipe.model_fields)
    else:
        known = [name for section in SECTIONS[str(loc[0])] for name in section.model_fields]
    return unknown_key(key, known)
