"""Plans and records of earlier versions: they can still be reported, and are not mixed with runs of this one."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from localora.adapter.peft_names import RETIRED
from localora.lab.recipe.methods import MethodSection

_METHOD: TypeAdapter[Any] = TypeAdapter(MethodSection)


def known_plan(values: Any) -> Any:
    """A plan as plain values without what this version has no more, and with what has another name now.

    Learning rates were chosen with one `seed`, intervals were drawn at random, and methods had other keys.
    """
    if not isinstance(values, dict) or not isinstance(values.get("plan"), dict):
        return values  # no plan: its reader says so
    plan = values["plan"]
    rates, statistics = plan.get("learning_rates", {}), plan.get("statistics", {})
    if "seed" in rates:
        rates["seeds"] = [rates.pop("seed")]
    for gone in ("draws", "seed"):
        statistics.pop(gone, None)
    for contender in values.get("contenders", []):
        contender["method"], _ = known_method(contender["method"])
    return values


def known_method(method: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A method's section without the keys that this version has no more, and those of them that did anything."""
    try:
        _METHOD.validate_python(method)
    except ValidationError as error:
        gone = [str(one["loc"][-1]) for one in error.errors(include_url=False) if one["type"] == "extra_forbidden"]
        left = {key: value for key, value in method.items() if key not in gone}
        return left, [key for key in gone if key not in RETIRED or method[key] != RETIRED[key]]
    return method, []
