"""From a YAML file to a plan; each problem ends up in one plain line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from localora.lab.compare.plan import Plan, PlanError
from localora.lab.recipe.data_spec import DataSpec
from localora.lab.recipe.file import explain, read_values, unknown_key


def load_plan(path: str | Path, overrides: Sequence[str] = (), folder: str | Path | None = None) -> Plan:
    """Read a plan and apply `key=value` overrides; `folder` is where its records go and goes before the plan's own.

    Raises:
        PlanError: unknown key or bad value; lists every problem at once.
        RecipeError: unreadable file, bad YAML, or a bad override.
    """
    path = Path(path)
    plan = validate_plan(read_values(path, overrides, list(Plan.model_fields)), str(path))
    return plan.model_copy(update={"folder": str(folder or plan.folder or Path("results") / path.stem)})


def validate_plan(values: dict[str, Any], source: str = "plan") -> Plan:
    """Turn nested plain values into a plan, or raise a PlanError with one line per problem."""
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors(include_url=False)]
        raise PlanError(source, *dict.fromkeys(problems)) from None


def _explain(problem: Mapping[str, Any]) -> str:
    loc = [part for part in problem["loc"] if part != "[key]"]
    return explain(problem, loc, lambda: unknown_key(str(loc[-1]), _known(loc)))


def _known(loc: list[Any]) -> list[str]:
    if len(loc) == 1:
        return list(Plan.model_fields)
    field = Plan.model_fields.get(str(loc[0]))
    section = DataSpec if loc[0] in ("tasks", "watch") else field.annotation if field else Plan
    known = section if isinstance(section, type) and issubclass(section, BaseModel) else Plan
    return list(known.model_fields)
