"""From a YAML file to a plan; each problem ends up in one plain line."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from localora.compare.errors import PlanError
from localora.compare.plan import LearningRates, Plan, Statistics
from localora.data.spec import DataSpec
from localora.recipe import EvaluationSection, ModelSection

SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelSection,
    "learning_rates": LearningRates,
    "statistics": Statistics,
    "evaluation": EvaluationSection,
}


def load_plan(path: str | Path, folder: str | Path | None = None) -> Plan:
    """Read a plan; `folder` is where its records go and goes before the plan's own.

    Raises:
        PlanError: unreadable file, bad YAML, unknown key or bad value; lists every problem at once.
    """
    path = Path(path)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        twice = _twice(root) if root is not None else []
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(str(path), [f"cannot be read: {error}"]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise PlanError(str(path), [f"{where}not valid YAML: {getattr(error, 'problem', None) or error}"]) from error
    if twice:
        raise PlanError(str(path), twice)
    if not isinstance(values, dict):
        raise PlanError(str(path), [f"must hold the keys of a plan: {', '.join(Plan.model_fields)}"])
    plan = validate_plan(values, str(path))
    return plan.model_copy(update={"folder": str(folder or plan.folder or Path("results") / path.stem)})


def validate_plan(values: dict[str, Any], source: str = "plan") -> Plan:
    """Turn nested plain values into a plan, or raise a PlanError with one line per problem."""
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        problems = [_explain(dict(problem)) for problem in error.errors(include_url=False)]
        raise PlanError(source, list(dict.fromkeys(problems))) from None


def _twice(node: yaml.Node) -> list[str]:
    """PyYAML keeps the last of two equal keys without a word; a plan must not."""
    if isinstance(node, yaml.SequenceNode):
        return [problem for child in node.value for problem in _twice(child)]
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = [key.value for key, _ in node.value]
    here = sorted({str(key) for key in keys if keys.count(key) > 1})
    found = [f"line {node.start_mark.line + 1}: key {key} is given twice" for key in here]
    return found + [problem for _, child in node.value for problem in _twice(child)]


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
