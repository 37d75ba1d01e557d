"""PEFT's own methods as recipes: the configuration is the one asked for, and the method trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import LlamaForCausalLM

import adapted_models
import tiny_models
import tiny_runs
from localora.recipe_file import method_section, validate_recipe
from localora.training.adapter import adapter_config, trainable_parameters
from localora.training.run import train

TARGETS = tiny_models.LLAMA_TARGETS
SUM_M, SUM_N = 2 * (32 + 16 + 48 + 32), 2 * (32 + 32 + 32 + 48)  # outputs and inputs of the adapted layers


def section(**values: Any) -> Any:
    return method_section({"target_modules": TARGETS, "r": 4, **values})


COUNTS = {
    "lora": 4 * (SUM_M + SUM_N),
    "rslora": 4 * (SUM_M + SUM_N),
    "pissa": 4 * (SUM_M + SUM_N),
    "dora": 4 * (SUM_M + SUM_N) + SUM_M,
    "gralora": 4 * (SUM_M + SUM_N),
    # of down_proj the factor A (48 inputs) is halved, of the others B
    "bd-lora": 4 * (SUM_N - 48 + 32 + SUM_M // 2),
    "miss": 4 * SUM_M,
    "hira": 4 * (SUM_M + SUM_N),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_papers(name: str, llama: LlamaForCausalLM) -> None:
    model = get_peft_model(llama, adapter_config(section(name=name), seed=0))
    assert trainable_parameters(model) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_the_adapted_model_starts_as_the_base_model(name: str, llama: LlamaForCausalLM) -> None:
    before = adapted_models.logits(llama.eval())
    model = get_peft_model(llama, adapter_config(section(name=name), seed=0)).eval()
    assert torch.allclose(adapted_models.logits(model), before, atol=1e-4)


@pytest.mark.parametrize(("name", "power"), [("dora", 1.0), ("rslora", 0.5)])
def test_layers_of_another_rank_keep_the_scale_of_r(name: str, power: float, llama: LlamaForCausalLM) -> None:
    layer = "model.layers.1.self_attn.q_proj"
    model = get_peft_model(llama, adapter_config(section(name=name, alpha=6.0, ranks={layer: 3}), seed=0))
    scales = [module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)]
    assert scales == pytest.approx([6.0 / 4**power] * 8)
    assert model.get_submodule(f"base_model.model.{layer}").r["default"] == 3


def test_bd_lora_refuses_ranks_its_blocks_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"multiples of blocks \(2\), got \[3\]"):
        adapter_config(section(name="bd-lora", ranks={"q_proj": 3}), seed=0)
    with pytest.raises(ValueError, match=r"gralora: r \(4\) must be a multiple of blocks \(3\)"):
        adapter_config(section(name="gralora", blocks=3), seed=0)


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "lora"])
def test_each_trains_and_leaves_a_finished_record(name: str, model_folder: Path, tmp_path: Path) -> None:
    values = tiny_runs.recipe_values(model_folder, tmp_path / name, "lora", learning_rate=3e-2)
    values["method"] = values["method"] | {"name": name}
    record = train(validate_recipe(values))
    assert record.status == "finished"
    assert record.method == name
    assert record.after is not None
    assert record.after.loss < record.before.loss
