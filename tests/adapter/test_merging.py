"""Merging, unmerging and PEFT's own conversion give the adapter's function."""

from __future__ import annotations

import pytest
import torch
from peft import (
    convert_to_lora,
    get_peft_model,
    set_peft_model_state_dict,
)
from torch import Tensor
from transformers import LlamaForCausalLM

from adapted_models import adapted, logits
from localora.adapter.layer import LocalizedLinear
from localora.adapter.status import adapted_layers
from method_table import BY_NAME, METHODS, Method, every_method
from tiny_models import LLAMA_TARGETS, tiny_llama

G_LORA, CPS_LORA = BY_NAME["g-lora"], BY_NAME["cps-lora"]


@every_method
@pytest.mark.parametrize("safe", [False, True])
def test_merge_and_unmerge(method: Method, safe: bool, base_logits: Tensor) -> None:
    model = adapted(method)
    with_adapter = logits(model)
    weights = {name: layer.get_base_layer().weight.clone() for name, layer in adapted_layers(model, "default")}
    model.merge_adapter(safe_merge=safe)
    for name, layer in adapted_layers(model, "default"):
        assert layer.merged
        torch.testing.assert_close(layer.base_layer.weight, weights[name] + layer.get_delta_weight("default"))
    torch.testing.assert_close(logits(model), with_adapter, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), base_logits, rtol=1e-4, atol=1e-4)
    model.merge_adapter(safe_merge=safe)
    model.unmerge_adapter()
    for name, layer in adapted_layers(model, "default"):
        torch.testing.assert_close(layer.base_layer.weight, weights[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(model), with_adapter, rtol=1e-4, atol=1e-4)


def test_merging_twice_and_unmerging_nothing_warn() -> None:
    model = adapted(G_LORA)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    model.merge_adapter()
    merged = logits(model)
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        model.merge_adapter()
    assert torch.equal(logits(model), merged)


@every_method
def test_merge_and_unload_is_the_plain_model(method: Method) -> None:
    model = adapted(method)
    with_adapter = logits(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert isinstance(merged, LlamaForCausalLM)
    assert not any(isinstance(module, LocalizedLinear) for module in merged.modules())
    torch.testing.assert_close(logits(merged), with_adapter, rtol=1e-4, atol=1e-4)


@every_method
def test_unload_gives_the_base_model_back(method: Method, base_logits: Tensor) -> None:
    assert torch.equal(logits(adapted(method).unload()), base_logits)


@every_method
def test_safe_merge_refuses_nan_and_leaves_the_weight(method: Method) -> None:
    model = adapted(method)
    _name, layer = adapted_layers(model, "default")[0]
    before = layer.get_base_layer().weight.clone()
    parameter = next(p for n, p in layer.named_parameters() if "localized_" in n and "_B" in n)
    parameter.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter default"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before)
    assert not layer.merged
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)


def test_merging_in_bfloat16_rounds_once() -> None:
    for method in METHODS:
        model = get_peft_model(tiny_llama().bfloat16(), method.config(target_modules=LLAMA_TARGETS)).eval()
        _name, layer = adapted_layers(model, "default")[0]
        expected = (layer.base_layer.weight.float() + layer.get_delta_weight("default").float()).bfloat16()
        model.merge_adapter()
        assert torch.equal(layer.base_layer.weight, expected)


@every_method
def test_peft_s_own_conversion_to_lora(method: Method) -> None:
    model = adapted(method)
    rank = max(layer.dense_factors("default")[0].shape[0] for _, layer in adapted_layers(model, "default"))
    config, state = convert_to_lora(model, rank=rank)
    lora = get_peft_model(tiny_llama(), config).eval()
    set_peft_model_state_dict(lora, state)
    torch.testing.assert_close(logits(lora), logits(model), rtol=1e-3, atol=1e-4)


def test_merging_into_a_tied_lm_head_changes_the_embedding_too_and_warns() -> None:
    model = tiny_llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    before = model.model.embed_tokens.weight.detach().clone()
    with pytest.warns(UserWarning, match="tied layer is part of the adapter"):
        adapted_head = get_peft_model(model, BY_NAME["cps-lora"].config(target_modules=["lm_head"]))
    delta = adapted_head.base_model.model.lm_head.get_delta_weight("default").detach()
    with pytest.warns(UserWarning, match=r"tie_word_embeddings=True.*\['lm_head'\] are part of the adapter"):
        merged = adapted_head.merge_and_unload()
    assert merged.model.embed_tokens.weight is merged.lm_head.weight
    torch.testing.assert_close(merged.model.embed_tokens.weight, before + delta)
    assert delta.norm() > 0.1
