"""Equal budgets, and no test prompt that was seen: what is unfair is refused before any run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from localora.lab.compare.guards import check_budgets, check_data, check_rate_seeds
from localora.lab.compare.plan import PlanError, ResolvedPlan
from planned import plan_values, resolved_plan

# Of SmolLM2-135M: q, k, v, o, gate, up and down of 30 blocks
SUM_OF_SIDES = 30 * (2 * (576 + 576) + 2 * (192 + 576) + 3 * (1536 + 576))


@pytest.fixture(scope="module")
def at_full_size() -> ResolvedPlan:
    methods = {"lora": None, **dict.fromkeys(("dora", "bd-lora", "g-lora", "cps-lora"))}
    methods["miss"] = {"budget_label": "its nearest rank"}  # one rank for all layers can come no nearer
    return resolved_plan("smollm2-135m", r=8, methods=methods, target_modules="all-linear", headroom=[2, 4])


def test_ranks_are_solved_until_budgets_agree(at_full_size: ResolvedPlan) -> None:
    check_budgets(at_full_size)
    lora = 8 * SUM_OF_SIDES
    counts = {c.label: c.trainable for c in at_full_size.entries}
    assert counts["lora"] == lora
    for name in ("dora", "bd-lora"):
        assert counts[name] == pytest.approx(lora, rel=0.001)
    assert counts["cps-lora"] == lora
    assert counts["g-lora"] == pytest.approx(lora, rel=0.005)
    a_rank = 30 * (2 * 576 + 2 * 192 + 2 * 1536 + 576)  # of MiSS: outputs of all layers
    assert counts["miss"] == round(lora / a_rank) * a_rank


def test_miss_comes_within_one_percent_at_some_ranks_only(at_full_size: ResolvedPlan) -> None:
    unlabelled = at_full_size.entry("miss").model_copy(update={"budget_label": None})
    with pytest.raises(
        PlanError, match=r"methods\.miss: trains 2,488,320 parameters, \+1\.9% of LoRA's 2,442,240 at r 8"
    ):
        check_budgets(at_full_size.model_copy(update={"entries": [unlabelled]}))
    methods = {"lora": None, "miss": None}
    check_budgets(resolved_plan("smollm2-135m", r=32, methods=methods, target_modules="all-linear"))


def test_headroom_is_lora_at_higher_ranks_and_says_so(at_full_size: ResolvedPlan) -> None:
    runs = [c for c in at_full_size.entries if c.role == "headroom"]
    assert [(c.label, c.trainable, c.budget_label) for c in runs] == [
        ("lora-r16", 16 * SUM_OF_SIDES, "2 r"),
        ("lora-r32", 32 * SUM_OF_SIDES, "4 r"),
    ]
    assert [c.label for c in at_full_size.rivals] == ["dora", "bd-lora", "g-lora", "cps-lora", "miss"]


def test_another_budget_is_refused_unless_it_has_a_label(model_folder: Path) -> None:
    methods = {"lora": None, "big": {"name": "lora", "r": 5}}
    with pytest.raises(PlanError) as caught:
        check_budgets(resolved_plan(model_folder, methods=methods))
    # q_proj is 32 x 32, down_proj 32 x 64: 160 parameters a rank
    assert caught.value.problems == [
        "methods.big: trains 800 parameters, +25.0% of LoRA's 640 at r 4; the most is 1%. Change its rank, or give it "
        "a budget_label, which every table then shows"
    ]
    methods["big"]["budget_label"] = "one rank more"
    check_budgets(resolved_plan(model_folder, methods=methods))


def test_one_percent_is_the_most(model_folder: Path) -> None:
    resolved = resolved_plan(model_folder)
    lora = resolved.entries[0].model_copy(update={"budget": 1000})
    for trainable in (990, 1010):
        check_budgets(resolved.model_copy(update={"entries": [lora.model_copy(update={"trainable": trainable})]}))
    for trainable in (989, 1011):
        changed = resolved.model_copy(update={"entries": [lora.model_copy(update={"trainable": trainable})]})
        with pytest.raises(PlanError, match=f"trains {trainable:,} parameters"):
            check_budgets(changed)


def data_files(folder: Path, name: str, train: Sequence[str], validation: Sequence[str], test: Sequence[str]) -> dict:
    paths = {}
    for split, prompts in (("path", train), ("validation_path", validation), ("test_path", test)):
        path = folder / f"{name}-{split}.jsonl"
        path.write_text("".join(json.dumps({"prompt": p, "completion": "yes"}) + "\n" for p in prompts))
        paths[split] = str(path)
    return paths


def check(model: Path, **tasks: dict) -> list[str]:
    """The problems that the tasks are refused for."""
    rates = plan_values()["learning_rates"] | {"validation_examples": 1}
    with pytest.raises(PlanError) as caught:
        check_data(resolved_plan(model, tasks=tasks, learning_rates=rates))
    return caught.value.problems


def test_a_prompt_trained_in_one_task_and_tested_in_another(model_folder: Path, tmp_path: Path) -> None:
    a = data_files(tmp_path, "a", ["Is the sky blue?", "Is grass red?"], ["Is ice hot?"], ["Is tar white?"])
    b = data_files(tmp_path, "b", ["Do cats bark?"], ["Do dogs mew?"], ["is THE sky  blue", "Do fish fly?"])
    (problem,) = check(model_folder, a=a, b=b)
    assert problem.startswith("tasks.a: 1 prompt(s) that it trains, calibrates or chooses learning rates on occur in ")
    assert "the test split of b (" in problem


def test_a_prompt_that_chooses_learning_rates_and_is_tested(model_folder: Path, tmp_path: Path) -> None:
    a = data_files(tmp_path, "a", ["Is the sky blue?"], ["Do fish fly?", "Is ice hot?"], ["Is tar white?"])
    b = data_files(tmp_path, "b", ["Do cats bark?"], ["Do dogs mew?"], ["Is ice hot?", "Do fish fly?"])
    (problem,) = check(model_folder, a=a, b=b)
    assert "tasks.a: 2 prompt(s)" in problem


def test_a_prompt_in_two_splits_of_one_task(model_folder: Path, tmp_path: Path) -> None:
    a = data_files(tmp_path, "a", ["Is the sky blue?"], ["Is ice hot?"], ["Is the sky blue!"])
    (problem,) = check(model_folder, a=a)
    assert problem.startswith("tasks.a: 1 held-out example(s) have the prompt of a training example")


def test_tasks_that_share_training_prompts_are_fair(model_folder: Path, tmp_path: Path) -> None:
    a = data_files(tmp_path, "a", ["Is the sky blue?"], ["Is ice hot?"], ["Is tar white?"])
    b = data_files(tmp_path, "b", ["Is the sky blue?"], ["Do dogs mew?"], ["Do fish fly?"])
    rates = plan_values()["learning_rates"] | {"validation_examples": 1}
    tasks = check_data(resolved_plan(model_folder, tasks={"a": a, "b": b}, learning_rates=rates))
    assert {name: len(task.test) for name, task in tasks.items()} == {"a": 1, "b": 1}


def test_too_little_validation_data_and_missing_files(model_folder: Path, tmp_path: Path) -> None:
    small = {"task": "arithmetic", "train_size": 24, "validation_size": 3, "test_size": 6}
    with pytest.raises(PlanError) as caught:
        check_data(resolved_plan(model_folder, tasks={"sums": small, "gone": {"path": str(tmp_path / "gone.jsonl")}}))
    missing, few = caught.value.problems
    assert missing.startswith("tasks.gone: ")
    assert "gone.jsonl" in missing
    assert few.startswith("tasks.sums: has 3 validation examples, and learning_rates.validation_examples is 4")


def test_learning_rates_are_chosen_with_two_seeds_or_more(model_folder: Path) -> None:
    rates = plan_values()["learning_rates"]
    check_rate_seeds(resolved_plan(model_folder, learning_rates=rates | {"seeds": [7, 8]}))
    with pytest.raises(PlanError, match=r"learning_rates\.seeds: \[7\] is one seed.*; give two or more"):
        check_rate_seeds(resolved_plan(model_folder, learning_rates=rates | {"seeds": [7]}))
