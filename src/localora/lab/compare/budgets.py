"""From a plan to its contenders: sections validated, own ranks solved, parameters counted without weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import PreTrainedModel

from localora.adapter.config import LocalizedConfig
from localora.lab.compare.methods import NOT_AVAILABLE, OWN_BUDGETS, match_budget
from localora.lab.compare.plan import CHOSEN_FOR_ALL, Contender, Plan, PlanError, ResolvedPlan, Role, distinct_grid
from localora.lab.cost.shapes import meta_model, model_config
from localora.lab.model.targets import resolve_targets
from localora.lab.recipe.file import method_section
from localora.lab.recipe.peft_methods import FullMethod, MethodBase
from localora.lab.recipe.schema import RecipeError, TrainingSection
from localora.lab.training.parameters import all_parameters, trainable_parameters
from localora.placement.budget import BudgetError

PLAN_KEYS = ("budget_label", "learning_rates")  # of a method in a plan, beside those of a recipe's method


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
    if values["name"] in NOT_AVAILABLE:
        raise ValueError(f"{values['name']} cannot be compared: {NOT_AVAILABLE[values['name']]}")
    for key, place in CHOSEN_FOR_ALL.items():
        if key in values:
            raise ValueError(f"{key} must be the same for all methods; set {place}")
    own = {key: value for key, value in values.items() if key not in PLAN_KEYS}
    section = method_section({**where, **own})
    grid = values.get("learning_rates")
    rates = distinct_grid([float(rate) for rate in grid]) if grid else plan.learning_rates.grid
    return values.get("budget_label", OWN_BUDGETS.get(values["name"])), rates, section
