"""PEFT's own methods as recipes: the configuration is the one asked for, and the method trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import LlamaForCausalLM

import adapted_models
import tiny_models
import tiny_runs
from localora.lab.compare.budgets import count_trainable, resolve
from localora.lab.compare.guards import check_budgets
from localora.lab.compare.plan import PlanError, ResolvedPlan
from localora.lab.compare.plan_file import validate_plan
from localora.lab.cost.shapes import meta_model, model_config
from localora.lab.recipe.file import method_section, validate_recipe
from localora.lab.run.train import train
from localora.lab.training.parameters import trainable_parameters

pytestmark = pytest.mark.slow

TARGETS = tiny_models.LLAMA_TARGETS
SUM_M, SUM_N = 2 * (32 + 16 + 48 + 32), 2 * (32 + 32 + 32 + 48)  # outputs and inputs of the adapted layers


def section(**values: Any) -> Any:
    return method_section({"target_modules": TARGETS, "r": 4, **values})


COUNTS = {
    "lora": 4 * (SUM_M + SUM_N),
    "rslora": 4 * (SUM_M + SUM_N),
    "pissa": 4 * (SUM_M + SUM_N),
    "dora": 4 * (SUM_M + SUM_N) + SUM_M,
    "lora-ga": 4 * (SUM_M + SUM_N),
    "adalora": 4 * (SUM_M + SUM_N + 8),  # at the start: init_r is r, and each of 8 layers has a diagonal
    "gralora": 4 * (SUM_M + SUM_N),
    # of down_proj the factor A (48 inputs) is halved, of the others B
    "bd-lora": 4 * (SUM_N - 48 + 32 + SUM_M // 2),
    "miss": 4 * SUM_M,
    "hira": 4 * (SUM_M + SUM_N),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_papers(name: str, llama: LlamaForCausalLM) -> None:
    model = get_peft_model(llama, section(name=name).peft_config(seed=0, steps=200))
    assert trainable_parameters(model) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_the_adapted_model_starts_as_the_base_model(name: str, llama: LlamaForCausalLM) -> None:
    before = adapted_models.logits(llama.eval())
    model = get_peft_model(llama, section(name=name).peft_config(seed=0, steps=200)).eval()
    assert torch.allclose(adapted_models.logits(model), before, atol=1e-4)


@pytest.mark.parametrize(("name", "power"), [("dora", 1.0), ("rslora", 0.5)])
def test_layers_of_another_rank_keep_the_scale_of_r(name: str, power: float, llama: LlamaForCausalLM) -> None:
    layer = "model.layers.1.self_attn.q_proj"
    model = get_peft_model(llama, section(name=name, alpha=6.0, ranks={layer: 3}).peft_config(seed=0, steps=200))
    scales = [module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)]
    assert scales == pytest.approx([6.0 / 4**power] * 8)
    assert model.get_submodule(f"base_model.model.{layer}").r["default"] == 3


def test_bd_lora_refuses_ranks_its_blocks_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"multiples of blocks \(2\), got \[3\]"):
        section(name="bd-lora", ranks={"q_proj": 3}).peft_config(seed=0, steps=200)
    with pytest.raises(ValueError, match=r"gralora: r \(4\) must be a multiple of blocks \(3\)"):
        section(name="gralora", blocks=3).peft_config(seed=0, steps=200)


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "lora"])
def test_each_trains_and_leaves_a_finished_record(name: str, model_folder: Path, tmp_path: Path) -> None:
    values = tiny_runs.recipe_values(model_folder, tmp_path / name, "lora", learning_rate=3e-2)
    values["method"] = values["method"] | {"name": name}
    record = train(validate_recipe(values))
    assert record.status == "finished"
    assert record.method == name
    assert record.after is not None
    assert record.after.loss < record.before.loss


def plan(model_folder: Path, steps: int = 200, **methods: dict[str, Any] | None) -> ResolvedPlan:
    values = {
        "model": {"name": str(model_folder)},
        "tasks": {"sums": {"task": "arithmetic"}},
        "r": 4,
        "methods": {"lora": None} | {name.replace("_", "-"): values for name, values in methods.items()},
        "headroom": [],
        "learning_rates": {"grid": [1e-4, 1e-3, 1e-2]},
        "training": {"steps": steps},
        "seeds": [1, 2],
    }
    return resolve(validate_plan(values), "plan")


def test_a_plan_counts_them_without_weights(model_folder: Path) -> None:
    resolved = plan(model_folder, adalora={"budget_label": "and a diagonal"}, lora_ga=None, full=None)
    model = LlamaForCausalLM.from_pretrained(model_folder)
    assert resolved.entry("full").trainable == sum(p.numel() for p in model.parameters())
    for name in ("adalora", "lora-ga"):
        config = method_section({"name": name, "r": 4}).peft_config(seed=0, steps=200)
        if isinstance(config, LoraConfig) and name == "lora-ga":
            config.init_lora_weights = True  # without the gradient that it starts from
        adapted = get_peft_model(LlamaForCausalLM.from_pretrained(model_folder), config)
        assert resolved.entry(name).trainable == trainable_parameters(adapted)


def test_all_weights_are_compared_with_a_label_and_never_without(model_folder: Path) -> None:
    resolved = plan(model_folder, full={"learning_rates": [1e-5, 1e-4, 1e-3]})
    full = resolved.entry("full")
    assert full.budget_ratio > 2
    assert full.budget_label == "all weights"
    check_budgets(resolved)
    with pytest.raises(PlanError, match=r"methods.full: trains .* of LoRA's"):
        check_budgets(plan(model_folder, full={"budget_label": None}))


def test_adalora_has_the_budget_at_its_start_and_not_1_5_times_as_much(model_folder: Path) -> None:
    base = meta_model(*model_config("smollm2-135m"), torch.float32)
    adalora, lora = (count_trainable(base, method_section({"name": name, "r": 8})) for name in ("adalora", "lora"))
    assert 1 < adalora / lora < 1.001
    with pytest.raises(PlanError, match=r"methods.adalora: trains .* \+52.1%"):
        check_budgets(plan(model_folder, adalora={"init_r": 6}))


def test_runs_too_short_for_adalora_is_refused_with_the_plan(model_folder: Path) -> None:
    label = {"budget_label": "and a diagonal"}
    assert plan(model_folder, steps=4, adalora=label).entry("adalora").trainable > 0
    with pytest.raises(PlanError, match=r"methods.adalora: adalora: 1 steps leave none in which ranks could fall"):
        plan(model_folder, steps=1, adalora=label)
