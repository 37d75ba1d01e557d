"""From a YAML file to a plan; each problem ends up in one plain line."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from localora.compare.errors import PlanError
from localora.compare.plan import LearningRates, Plan, Published, Statistics
from localora.data.spec import DataSpec
from localora.recipe import EvaluationSection, ModelSection, TrainingSection
from localora.recipe_file import apply_override, parse_yaml

SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelSection,
    "learning_rates": LearningRates,
    "statistics": Statistics,
    "training": TrainingSection,
    "published": Published,
    "evaluation": EvaluationSection,
}


def load_plan(path: str | Path, overrides: Sequence[str] = (), folder: str | Path | None = None) -> Plan:
    """Read a plan and apply `key=value` overrides; `folder` is where its records go and goes before the plan's own.

    Raises:
        PlanError: unreadable file, unknown key or bad value; lists every problem at once.
        RecipeError: bad YAML, or a bad override.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(str(path), [f"cannot be read: {error}"]) from error
    values = parse_yaml(text, str(path), list(Plan.model_fields))
    for override in overrides:
        apply_override(values, override)
    plan = validate_plan(values, str(path))
    return plan.model_copy(update={"folder": str(folder or plan.folder or Path("results") / path.stem)})


def validate_plan(values: dict[str, Any], source: str = "plan") -> Plan:
    """Turn nested plain values into a plan, or raise a PlanError with one line per problem."""
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        problems = [_explain(dict(problem)) for problem in error.errors(include_url=False)]
        raise PlanError(source, list(dict.fromkeys(problems))) from None


def _explain(problem: dict[str, Any]) -> str:
    loc = [part for part in problem["loc"] if part != "[key]"]
    where = ".".join(str(part) for part in loc)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key{_closest(str(loc[-1]), _known(loc))}"
    if problem["type"] == "missing":
        return f"{where}: missing"
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if isinstance(problem["input"], (dict, list)) or problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where}: {message}, got {problem['input']!r}"


def _known(loc: list[Any]) -> list[str]:
    if len(loc) == 1:
        return list(Plan.model_fields)
    section = DataSpec if loc[0] == "tasks" else SECTIONS.get(str(loc[0]), Plan)
    return list(section.model_fields)


def _closest(word: str, known: list[str]) -> str:
    match = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else f"; known: {', '.join(known)}"
