from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from localora.lab.model.targets import Target, resolve_targets


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16))


def test_shapes_are_outputs_by_inputs():
    found = {t.name: (t.m, t.n) for t in resolve_targets(llama(), "all-linear")}
    assert len(found) == 14
    assert found["model.layers.1.self_attn.k_proj"] == (16, 32)
    assert found["model.layers.1.mlp.down_proj"] == (32, 48)


def test_conv1d_is_turned_round():
    found = {t.name: (t.m, t.n) for t in resolve_targets(gpt2(), ["c_attn"])}
    assert found == {f"transformer.h.{i}.attn.c_attn": (96, 32) for i in range(2)}


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("spec", ["all-linear", ["mlp.c_proj", "down_proj", "attn.c_attn", "v_proj"]])
def test_the_same_matrices_as_peft(make, spec):
    model = make()
    if spec != "all-linear":
        spec = [name for name in spec if any(n.endswith(name) for n, _ in model.named_modules())]
    found = resolve_targets(model, spec)
    fan_in_fan_out = make is gpt2
    adapted = get_peft_model(make(), LoraConfig(r=2, target_modules=spec, fan_in_fan_out=fan_in_fan_out))
    shapes = []
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            shapes.append(Target(name.removeprefix("base_model.model."), b.shape[0], a.shape[1]))
    assert shapes == found


def test_the_head_is_left_out_even_by_name():
    with pytest.raises(ValueError, match=r"no linear layer is named lm_head; there are \['down_proj', 'gate_proj'"):
        resolve_targets(llama(), ["q_proj", "lm_head"])


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        (nn.Sequential(nn.Linear(2, 3)), "all", 'must be "all-linear" or a list'),
        (nn.Sequential(nn.Linear(2, 3)), [], "empty list"),
        (nn.Sequential(nn.ReLU()), "all-linear", "no linear layer"),
        (nn.Sequential(nn.Linear(2, 3)), ["00"], "no linear layer is named 00"),
    ],
)
def test_bad_specs(model, spec, message):
    with pytest.raises(ValueError, match=message):
        resolve_targets(model, spec)


def test_meta_models_serve():
    with torch.device("meta"):
        assert len(resolve_targets(llama(), "all-linear")) == 14
