"""From a plan to its entries: sections validated, own ranks solved, parameters counted without weights.

Shape legend
    m   rows of W (outputs)
    n   columns of W (inputs)
    r   LoRA-equivalent rank: the budget is r (m + n) a matrix
    q   the method's own rank of that matrix

Most methods cost the budget at q = r. DoRA, BD-LoRA and MiSS do not, and q is solved for. AdaLoRA costs it at its
start, which is what counts: those parameters have gradients and optimizer state, although not all are left at the end.
Full fine-tuning has no rank and is far over, so it has a label. Where ranks may differ by layer, what one layer is over
or under is carried to the next, so that the sum is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field, ValidationError
from transformers import PreTrainedModel

from localora.lab.compare.plan import (
    CHOSEN_FOR_ALL,
    Entry,
    Plan,
    PlanError,
    Rate,
    ResolvedPlan,
    Role,
    distinct_grid,
)
from localora.lab.cost.shapes import adapted_shapes, meta_model, model_config
from localora.lab.recipe.file import explain, method_section
from localora.lab.recipe.peft_methods import BdLoraMethod, FullMethod, LoraMethod, MethodBase, MissMethod
from localora.lab.recipe.schema import RecipeError, TrainingSection
from localora.lab.recipe.section import Section
from localora.lab.training.parameters import all_parameters, lora_beside, trainable_parameters

# The budget_label of methods that cannot have the budget of the others, unless the plan gives one.
OWN_BUDGETS = {"full": "all weights"}
OWN_RANKS = ("dora", "bd-lora", "miss")  # which have more or fewer parameters than LoRA at the same rank


class PlanKeys(Section):
    """Keys of a method in a plan, beside those of a recipe's method."""

    budget_label: str | None = Field(default=None, min_length=1)
    learning_rates: list[Rate] | None = None


def resolve(plan: Plan, name: str) -> ResolvedPlan:
    """The plan with every method's own rank solved and its parameters counted.

    Raises:
        PlanError: methods with unknown keys, keys that must be the same for all, or that do not fit the model.
        ModelError: no such model.
    """
    base = meta_model(*model_config(plan.model.name), torch.float32)
    experts = {"target_parameters": plan.target_parameters} if plan.target_parameters else {}
    where = {"r": plan.r, "target_modules": plan.target_modules, **experts}
    budget = trainable_parameters(lora_beside(base, method_section({"name": "lora", **where})))
    entries: list[Entry] = []
    problems: list[str] = []
    for label, role, values in _wanted(plan):
        try:
            budget_label, grid, section = _section(plan, label, values, where)
            section = match_budget(base, section)
            trainable = count_trainable(base, section, plan.training.steps)
        except (RecipeError, ValueError) as error:
            lines = error.problems if isinstance(error, RecipeError) else [str(error)]
            problems += [f"methods.{label}: {line.removeprefix('method.')}" for line in lines]
            continue
        entries.append(
            Entry(
                label=label,
                role=role,
                method=section,  # type: ignore[arg-type]  # a member of the union, as the base class
                budget_label=budget_label,
                grid=grid,
                trainable=trainable,
                budget=budget,
            )
        )
    if problems:
        raise PlanError(name, *problems)
    return ResolvedPlan(name=name, plan=plan, entries=entries)


def count_trainable(base: PreTrainedModel, method: MethodBase, steps: int = TrainingSection().steps) -> int:
    """Trainable parameters of `method` on a model on the meta device; counted, not computed: PEFT makes the adapter.

    Raises:
        ValueError: keys that contradict each other, or a schedule that `steps` of training are too few for.
    """
    if isinstance(method, FullMethod):
        return all_parameters(base)
    return trainable_parameters(adapted_shapes(base, method.peft_config(seed=0, steps=steps)))


def _wanted(plan: Plan) -> Iterator[tuple[str, Role, dict[str, Any]]]:
    for label, values in plan.methods.items():
        yield label, "method", {"name": label, **(values or {})}
    for label, (base, multiple) in plan.headroom_labels.items():
        own = {"name": base, **(plan.methods[base] or {}), "r": plan.r * multiple, "budget_label": f"{multiple} r"}
        yield label, "headroom", own


def _section(
    plan: Plan, label: str, values: dict[str, Any], where: dict[str, Any]
) -> tuple[str | None, list[float], MethodBase]:
    for key, place in CHOSEN_FOR_ALL.items():
        if key in values:
            raise ValueError(f"{key} must be the same for all methods; set {place}")
    try:
        of_plan = PlanKeys.model_validate({key: values[key] for key in PlanKeys.model_fields if key in values})
    except ValidationError as error:
        raise RecipeError(label, *[explain(problem, problem["loc"], str) for problem in error.errors()]) from error
    section = method_section(
        {**where, **{key: value for key, value in values.items() if key not in PlanKeys.model_fields}}
    )
    rates = plan.learning_rates.grid if of_plan.learning_rates is None else distinct_grid(of_plan.learning_rates)
    return values.get("budget_label", OWN_BUDGETS.get(values["name"])), rates, section


def match_budget(base: PreTrainedModel, method: MethodBase) -> MethodBase:
    """The same method with the rank of its own that comes nearest to r (m + n) parameters over its layers.

    What a layer costs, fixed + per_step * steps, is read off PEFT's adapter at two ranks.
    """
    if not isinstance(method, LoraMethod) or method.name not in OWN_RANKS or _given(method):
        return method
    step = method.blocks if isinstance(method, BdLoraMethod) else 1
    once, twice = (_by_layer(base, method.model_copy(update={"r": q})) for q in (step, 2 * step))
    per_step = {layer: twice[layer] - once[layer] for layer in once}
    wanted = _by_layer(base, LoraMethod(name="lora", r=method.r, target_modules=method.target_modules))
    if isinstance(method, MissMethod):
        nearest = round(sum(wanted.values()) / sum(per_step.values()))
        return method.model_copy(update={"own_rank": max(1, nearest)})
    ranks, carried = {}, 0
    for layer in once:
        left = wanted[layer] + carried - (once[layer] - per_step[layer])
        steps = max(1, round(left / per_step[layer]))
        carried = left - steps * per_step[layer]
        if steps * step != method.r:
            ranks[layer] = steps * step
    return method.model_copy(update={"ranks": ranks})


def _given(method: LoraMethod) -> bool:
    return bool(method.own_rank if isinstance(method, MissMethod) else method.ranks)


def _by_layer(base: PreTrainedModel, method: MethodBase) -> dict[str, int]:
    """Trainable parameters of each adapted layer."""
    config = method.peft_config(seed=0, steps=TrainingSection().steps)
    modules = adapted_shapes(base, config).get_base_model().named_modules()
    layers: list[tuple[str, Any]] = [(name, module) for name, module in modules if isinstance(module, BaseTunerLayer)]
    return {name: trainable_parameters(layer) for name, layer in layers}
