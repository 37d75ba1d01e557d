"""Plans: what they say, and what is refused with the remedy named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from localora import CpsLoraConfig, GLoraConfig
from localora.lab.compare.budgets import resolve
from localora.lab.compare.guards import check_budgets, check_data
from localora.lab.compare.plan import PlanError, ResolvedPlan
from localora.lab.compare.plan_file import load_plan, validate_plan
from localora.lab.compare.runs import final_run, sweep_run
from localora.lab.recipe.schema import RecipeError
from planned import GRID, plan_values, resolved_plan

REPOSITORY = Path(__file__).parents[3]


def rates(**changes: Any) -> dict[str, Any]:
    return {"learning_rates": {"grid": list(GRID), "validation_examples": 4} | changes}


REFUSED = {
    "a task in the place of the plan": (
        {"tasks": {"plan.json": {"task": "facts"}}},
        "tasks: plan.json would be a folder among the comparison's files; give the task a name without .json",
    ),
    "a task in the place of the page": (
        {"tasks": {"index.html": {"task": "facts"}}},
        "give the task a name without .html",
    ),
    "an unknown key": ({"metods": {}}, "metods: unknown key; did you mean 'methods'?"),
    "an unknown key of a section": (rates(girds=[1]), "learning_rates.girds: unknown key; did you mean 'grid'?"),
    "an unknown key of a task": (
        {"tasks": {"a": {"taks": "facts"}}},
        "tasks.a.taks: unknown key; did you mean 'task'?",
    ),
    "an unknown key of training": ({"training": {"stepz": 4}}, "training.stepz: unknown key; did you mean 'steps'?"),
    "two learning rates": (rates(grid=[1e-3, 1e-2]), "at least 3"),
    "three that are two": (rates(grid=[1e-3, 1e-2, 1e-2]), "needs at least 3 different learning rates"),
    "a seed that has chosen the rate": (
        rates(seeds=[1, 7]),
        "seed 1 chooses the learning rates and is among the final",
    ),
    "the same seed twice": ({"seeds": [3, 3]}, "seeds holds the same seed twice"),
    "a single seed": ({"seeds": [3]}, "seeds: List should have at least 2 items"),
    "a baseline that does not run": ({"baseline": "dora"}, "baseline names dora, which is not among the methods"),
    "headroom of what does not run": (
        {"headroom": [2], "headroom_of": ["rslora"]},
        "headroom_of names rslora, which is not among the methods",
    ),
    "a contrast with what does not run": (
        {"contrasts": [["g-lora", "dora"]]},
        "contrasts names dora, which is not among the methods",
    ),
    "a contrast with itself": ({"contrasts": [["lora", "lora"]]}, "contrasts holds a method against itself"),
    "the same contrast twice": ({"contrasts": [["g-lora", "lora"]] * 2}, "contrasts holds a pair twice"),
    "a method with the name of a headroom run": (
        {"headroom": [2], "methods": {"lora": None, "lora-r8": {"name": "lora"}}},
        "methods.lora-r8 has the name of a headroom run; give it another",
    ),
    "the same headroom twice": ({"headroom": [2, 2]}, "headroom holds the same multiple twice"),
    "one learning rate for all": ({"training": {"learning_rate": 1e-3}}, "it belongs in learning_rates.grid"),
    "a seed for all": ({"training": {"seed": 3}}, "seed is no key of a plan's training; it belongs in seeds"),
    "a name that is no folder": ({"methods": {"lora": None, "../x": {"name": "lora"}}}, "methods.../x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_plan_is_refused(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(PlanError) as caught:
        validate_plan(plan_values(**changes), "p.yaml")
    assert message in str(caught.value)
    assert all(line.startswith("p.yaml: ") for line in str(caught.value).splitlines())


def test_a_plan_names_its_dtype() -> None:
    assert validate_plan(plan_values()).model.dtype == "float32"
    with pytest.raises(PlanError, match=r"model.dtype: a comparison must not depend on the machine .* write float32"):
        validate_plan(plan_values() | {"model": {"dtype": "auto"}})


def test_every_problem_is_said_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        validate_plan(plan_values(r=0, seeds=[3], training={"steps": 0}))
    assert [line.partition(":")[0] for line in caught.value.problems] == ["r", "seeds", "training.steps"]


METHODS_REFUSED = {
    "target modules of its own": ({"target_modules": ["q_proj"]}, "target_modules must be the same for all methods"),
    "steps of its own": ({"steps": 9}, "steps must be the same for all methods; set training.steps"),
    "one learning rate": ({"learning_rate": 1e-3}, "learning_rates of the method for a grid of its own"),
    "two learning rates": ({"learning_rates": [1e-3, 1e-2]}, "needs at least 3 different learning rates"),
    "no learning rate": ({"learning_rates": []}, "needs at least 3 different learning rates"),
    "a learning rate that is no list": ({"learning_rates": 1e-3}, "learning_rates: should be a valid list, got 0.001"),
    "words for learning rates": ({"learning_rates": ["a", 1, 2]}, "learning_rates.0: should be a valid number"),
    "learning rates below zero": ({"learning_rates": [-1e-4, 1e-3, 1e-2]}, "learning_rates.0: should be greater than"),
    "a budget label of no letters": ({"budget_label": ""}, "budget_label: String should have at least 1 character"),
    "a budget label that is a number": ({"budget_label": 5}, "budget_label: should be a valid string, got 5"),
    "an unknown key": ({"local_sise": 0.5}, "local_sise: unknown key; did you mean 'local_size'?"),
    "another method's key": ({"clusters": 2}, "clusters: no setting of g-lora (it belongs to cps-lora, hybrid)"),
    "no such method": ({"name": "g-lara"}, "'g-lara' is no method; did you mean 'g-lora'?"),
}


@pytest.mark.parametrize("case", METHODS_REFUSED)
def test_a_method_is_refused(case: str, model_folder: Path) -> None:
    changes, message = METHODS_REFUSED[case]
    with pytest.raises(PlanError) as caught:
        resolved_plan(model_folder, methods={"lora": None, "ours": {"name": "g-lora"} | changes})
    assert caught.value.problems[0].startswith("methods.ours: ")
    assert message in caught.value.problems[0]


def test_a_layer_that_the_model_lacks_is_named_before_anything_is_run(model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no layer is called query\. The linear layers of this model"):
        resolved_plan(model_folder, target_modules=["q_proj", "query"])


def test_events_of_every_method_can_be_compared(model_folder: Path) -> None:
    events = {"repartition": [0.25, 0.5], "frozen_rank": 40}
    methods: dict[str, Any] = {
        "lora": None,
        "lora-events": {"name": "g-lora", "global_share": 1.0, **events},
        "random": {"name": "cps-lora", "clusters": 2, "placement": "random", "repartition_place": "random", **events},
        "kept": {"name": "hybrid", "clusters": 2, "placement": "random", "repartition_place": "kept", **events},
        "merged": {"name": "g-lora", "repartition": [0.25], "frozen": "merged"},
    }
    resolved = resolved_plan(model_folder, methods=methods)
    check_budgets(resolved)
    ours = final_run(resolved, "sums", resolved.entry("random"), 1e-2, 1).recipe.method
    config = ours.peft_config(seed=1, steps=200)
    assert isinstance(config, CpsLoraConfig)
    assert (config.repartition, config.repartition_place, config.frozen_rank) == ([0.25, 0.5], "random", 40)
    lora = resolved.entry("lora-events").method.peft_config(seed=1, steps=200)
    assert isinstance(lora, GLoraConfig)
    assert lora.layer_budget(32, 32, 4).local is None


def test_a_plan_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(plan_values()))
    plan = load_plan(path, ["training.steps=9", "learning_rates.widen=0", "methods.g-lora.local_size=0.25"])
    assert (plan.training.steps, plan.learning_rates.widen) == (9, 0)
    assert plan.methods["g-lora"] == {"local_size": 0.25, "calibration_steps": 2}
    assert plan.folder == "results/mine"
    assert load_plan(path, ["folder=there"]).folder == "there"
    assert load_plan(path, ["folder=there"], folder=tmp_path / "here").folder == str(tmp_path / "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r: 4\nseeds: [0, 1}", "line 2: not valid YAML"),
        ("r: 4\nr: 8", "key r is given twice"),
        ("- lora", "must hold sections (model, tasks, r,"),
    ],
)
def test_a_file_that_holds_no_plan(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_plan(tmp_path / "p.yaml")
    assert message in str(caught.value)
    with pytest.raises(RecipeError, match=r"nothing\.yaml: cannot be read"):
        load_plan(tmp_path / "nothing.yaml")


def test_all_else_is_the_same_for_all(model_folder: Path) -> None:
    resolved = resolved_plan(model_folder)
    lora, ours = (final_run(resolved, "sums", c, 1e-2, 1).recipe.resolved() for c in resolved.entries)
    assert {key for key in lora if lora[key] != ours[key]} == {"method", "output"}  # PEFT's LoRA needs no export
    assert (lora["training"]["learning_rate"], lora["training"]["seed"], lora["training"]["steps"]) == (1e-2, 1, 4)
    assert lora["evaluation"]["examples"] == 4


def test_a_run_that_chooses_a_rate_sees_one_test_example_and_no_final_seed(model_folder: Path) -> None:
    resolved = resolved_plan(model_folder)
    recipe = sweep_run(resolved, "sums", resolved.entry("g-lora"), 1e-2, 1001).recipe
    assert (recipe.evaluation.examples, recipe.evaluation.curve_examples) == (1, 4)
    assert recipe.training.seed == 1001
    assert not recipe.output.export


def test_a_resolved_plan_reads_back_as_it_was(model_folder: Path) -> None:
    resolved = resolved_plan(model_folder, headroom=[2])
    assert ResolvedPlan.model_validate_json(resolved.model_dump_json()) == resolved


def test_the_plan_that_newcomers_run_is_fair() -> None:
    resolved = resolve(load_plan(REPOSITORY / "plans" / "tiny.yaml"), "tiny")
    check_budgets(resolved)
    assert len(check_data(resolved)["arithmetic"].train) == 200


def test_the_plan_in_the_documentation_is_valid() -> None:
    text = (REPOSITORY / "docs" / "compare.md").read_text(encoding="utf-8")
    block = text.split("```yaml\n")[1].split("```")[0]
    resolved = resolve(validate_plan(yaml.safe_load(block)), "documented")
    check_budgets(resolved)
    assert [c.label for c in resolved.entries if c.role == "method"] == [
        "lora", "dora", "cps-lora", "cps-random", "gralora",
    ]  # fmt: skip
    assert resolved.entry("gralora").grid == [1e-3, 3e-3, 1e-2]
