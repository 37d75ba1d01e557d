"""From a plan to its contenders: sections validated, own ranks solved, parameters counted without weights.

Shape legend
    m   rows of W (outputs)
    n   columns of W (inputs)
    r   LoRA-equivalent rank: the budget is r (m + n) a matrix
    q   the method's own rank of that matrix

Most methods cost the budget at q = r. DoRA, BD-LoRA and MiSS do not: each costs `fixed + per_rank * q`, and q is solved
for. AdaLoRA costs it at its start, which is what counts: those parameters have gradients and optimizer state, although
not all are left at the end. Full fine-tuning has no rank and is far over, so it has a label. Where ranks may differ
by layer, what one layer is over or under is carried to the next, so that the sum is right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from pydantic import Field, ValidationError
from transformers import PreTrainedModel

from localora.adapter.config import LocalizedConfig
from localora.lab.compare.plan import (
    CHOSEN_FOR_ALL,
    Contender,
    Plan,
    PlanError,
    Rate,
    ResolvedPlan,
    Role,
    distinct_grid,
)
from localora.lab.cost.shapes import meta_model, model_config
from localora.lab.model.targets import Target, resolve_targets
from localora.lab.recipe.file import explain, method_section
from localora.lab.recipe.peft_methods import BdLoraMethod, FullMethod, LoraMethod, MethodBase, MissMethod
from localora.lab.recipe.schema import RecipeError, TrainingSection
from localora.lab.recipe.section import Section
from localora.lab.training.parameters import all_parameters, trainable_parameters
from localora.placement.budget import BudgetError

# The budget_label of methods that cannot have the budget of the others, unless the plan gives one.
OWN_BUDGETS = {"full": "all weights"}


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
    targets = resolve_targets(base, plan.target_modules) if plan.target_modules or not experts else []
    budget = count_trainable(base, method_section({"name": "lora", **where}))
    contenders: list[Contender] = []
    problems: list[str] = []
    for label, role, values in _entries(plan):
        try:
            budget_label, grid, section = _section(plan, label, values, where)
            section = match_budget(section, targets)
            trainable = count_trainable(base, section, plan.training.steps)
        except (RecipeError, BudgetError, ValueError) as error:
            lines = error.problems if isinstance(error, RecipeError) else [str(error)]
            problems += [f"methods.{label}: {line.removeprefix('method.')}" for line in lines]
            continue
        contenders.append(
            Contender(
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
        raise PlanError(name, problems)
    return ResolvedPlan(name=name, plan=plan, contenders=contenders)


def count_trainable(base: PreTrainedModel, method: MethodBase, steps: int = TrainingSection().steps) -> int:
    """Trainable parameters of `method` on a model on the meta device; counted, not computed: PEFT makes the adapter.

    Raises:
        ValueError: keys that contradict each other, or a schedule that `steps` of training are too few for.
    """
    if isinstance(method, FullMethod):
        return all_parameters(base)
    config = _for_meta(method.peft_config(seed=0, steps=steps))
    model = get_peft_model(copy.deepcopy(base), config, low_cpu_mem_usage=True)
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:  # AdaLoRA's note of a layer's rank, which PEFT forgets to freeze on the meta device
            parameter.requires_grad_(False)
    return trainable_parameters(model)


def _for_meta(config: PeftConfig) -> PeftConfig:
    """Initial values need weights; shapes do not."""
    if isinstance(config, LocalizedConfig):
        config.placement = "calibrate"
    elif isinstance(config, LoraConfig):
        config.init_lora_weights = True
    return config


def _entries(plan: Plan) -> Iterator[tuple[str, Role, dict[str, Any]]]:
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
        raise RecipeError(label, [explain(problem, problem["loc"], str) for problem in error.errors()]) from error
    section = method_section(
        {**where, **{key: value for key, value in values.items() if key not in PlanKeys.model_fields}}
    )
    rates = plan.learning_rates.grid if of_plan.learning_rates is None else distinct_grid(of_plan.learning_rates)
    return values.get("budget_label", OWN_BUDGETS.get(values["name"])), rates, section


class Cost(NamedTuple):
    """Trainable parameters of one matrix: fixed + per_rank * q, for q a multiple of step."""

    fixed: int
    per_rank: int
    step: int = 1


def _dora(method: MethodBase, target: Target) -> Cost:
    return Cost(fixed=target.m, per_rank=target.m + target.n)  # one magnitude an output


def _bd_lora(method: MethodBase, target: Target) -> Cost:
    assert isinstance(method, BdLoraMethod)
    b = method.blocks
    short = target.name.rpartition(".")[2]
    row_sharded = any(name in short for name in method.row_sharded)
    per_rank = target.m + target.n // b if row_sharded else target.m // b + target.n
    return Cost(fixed=0, per_rank=per_rank, step=b)


def _miss(method: MethodBase, target: Target) -> Cost:
    return Cost(fixed=0, per_rank=target.m)


COSTS: dict[str, Callable[[MethodBase, Target], Cost]] = {"dora": _dora, "bd-lora": _bd_lora, "miss": _miss}


def match_budget(method: MethodBase, targets: Sequence[Target]) -> MethodBase:
    """The same method with the rank of its own that comes nearest to r (m + n) parameters over `targets`."""
    cost = COSTS.get(method.name)
    if cost is None or not isinstance(method, LoraMethod):
        return method
    costs = [cost(method, target) for target in targets]
    if isinstance(method, MissMethod):
        budget = sum(method.r * (target.m + target.n) for target in targets)
        per_rank = sum(c.per_rank for c in costs)
        return method.model_copy(update={"own_rank": method.own_rank or max(1, round(budget / per_rank))})
    if method.ranks:
        return method
    ranks, carried = {}, 0.0
    for target, c in zip(targets, costs, strict=True):
        wanted = method.r * (target.m + target.n) + carried
        q = max(c.step, c.step * round((wanted - c.fixed) / (c.per_rank * c.step)))
        carried = wanted - c.fixed - c.per_rank * q
        if q != method.r:
            ranks[target.name] = q
    return method.model_copy(update={"ranks": ranks})
