"""Runs and plans on a mixture of experts: an adapter for each expert, LoRA beside it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from localora.lab.compare.guards import check_budgets
from localora.lab.recipe.file import validate_recipe
from localora.lab.run.setup import load_setup
from localora.lab.run.train import train
from planned import resolved_plan
from tiny_experts import STACKS
from tiny_runs import recipe_values, save_tiny_model

EXPERTS, RANK = 3, 4
ON_EXPERTS: dict[str, Any] = {"target_modules": ["q_proj"], "target_parameters": STACKS}
OF_LORA = RANK * ((32 + 32) + EXPERTS * ((64 + 32) + (32 + 32)))  # trainable parameters: q_proj, and the two stacks


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral of one layer with the tokenizer of the other tiny models."""
    folder = save_tiny_model(tmp_path_factory.mktemp("mixture"))
    small = AutoModelForCausalLM.from_pretrained(folder).config
    torch.manual_seed(0)
    shared = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        initializer_range=0.2,
        **{key: getattr(small, key) for key in shared},
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the adapter has updates of stacked experts")
@pytest.mark.parametrize("method", ["lora", "cps-lora"])
def test_a_run_trains_experts_and_records_what_it_trained(mixture: Path, method: str, tmp_path: Path) -> None:
    values = recipe_values(mixture, tmp_path / "run", method)
    recipe = validate_recipe(values | {"method": values["method"] | ON_EXPERTS})
    record = train(recipe, console=Console(file=io.StringIO()))
    assert record.parameters.trainable == pytest.approx(OF_LORA, rel=0.005)
    assert record.parameters.lora_same_r == OF_LORA
    assert record.after is not None
    assert record.after.loss < record.before.loss
    setup = load_setup(recipe)
    for folder in ("adapter",) if method == "lora" else ("adapter", "lora"):
        saved = PeftModel.from_pretrained(load_setup(recipe).model, tmp_path / "run" / folder)
        assert setup.measure(saved).loss == pytest.approx(record.after.loss, abs=1e-5)
    if method == "cps-lora":
        assert record.placement is not None
        assert len(record.placement["layers"]) == 1 + 2 * EXPERTS
        assert len(record.repartitions) == 1


def test_a_plan_counts_experts_in_the_budget(mixture: Path) -> None:
    plan = resolved_plan(mixture, **ON_EXPERTS)
    assert {entry.budget for entry in plan.entries} == {OF_LORA}
    assert next(c.trainable for c in plan.entries if c.label == "lora") == OF_LORA
    check_budgets(plan)
