"""Saving and loading, by every door PEFT and transformers have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from adapted_models import adapted, assert_same_placement, logits
from localora import export_lora, placement_of
from localora.adapter.status import adapted_layers
from method_table import BY_NAME, Method, every_method, every_placed_method
from tiny_models import LLAMA_TARGETS, VOCABULARY, tiny_llama

G_LORA, CPS_LORA = BY_NAME["g-lora"], BY_NAME["cps-lora"]


@every_method
def test_save_and_load(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    model.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert type(config) is type(model.peft_config["default"])
    assert config.placement == "random"
    back = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert torch.equal(logits(back), logits(model))
    assert_same_placement(back, model)
    assert not any(p.requires_grad for p in back.parameters())
    trainable = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    assert {n for n, p in trainable.named_parameters() if p.requires_grad} == {
        n for n, _ in trainable.named_parameters() if "localized_" in n
    }


@every_placed_method
def test_loading_over_another_placement_replaces_it(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    model.save_pretrained(tmp_path)
    other = adapted(method, seed=7)
    logits(other)  # its labels have been used and verified
    assert placement_of(other) != placement_of(model)
    other.load_adapter(tmp_path, "default")
    assert_same_placement(other, model)
    assert torch.equal(logits(other), logits(model))


@every_method
def test_low_cpu_mem_usage(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(tiny_llama(), tmp_path, low_cpu_mem_usage=True).eval()
    assert all(tensor.device.type == "cpu" for tensor in back.state_dict().values())
    assert torch.equal(logits(back), logits(model))
    assert_same_placement(back, model)


def test_a_classifier_whose_config_names_modules_that_it_lacks(tmp_path: Path) -> None:
    """PEFT writes both names that heads have into modules_to_save; this model has one of them."""

    def base() -> LlamaForSequenceClassification:
        torch.manual_seed(0)
        return LlamaForSequenceClassification(tiny_llama().config)

    model = get_peft_model(base(), CPS_LORA.config(target_modules=LLAMA_TARGETS, task_type="SEQ_CLS"))
    assert model.peft_config["default"].modules_to_save == ["classifier", "score"]
    model.get_parameter("base_model.model.score.modules_to_save.default.weight").data.mul_(2)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="modules_to_save; PEFT loads them"):
        export_lora(tmp_path / "adapter", tmp_path / "lora")
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = model.eval()(ids).logits
        for kind in ("adapter", "lora"):
            back = PeftModel.from_pretrained(base(), tmp_path / kind).eval()
            torch.testing.assert_close(back(ids).logits, expected, rtol=1e-4, atol=1e-5)


@every_method
def test_modules_to_save(method: Method, tmp_path: Path) -> None:
    model = adapted(method, modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"].weight
    assert head.requires_grad
    head.data.mul_(-1.5)
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert torch.equal(back.base_model.model.lm_head.modules_to_save["default"].weight, head)
    assert torch.equal(logits(back), logits(model))
    torch.testing.assert_close(logits(back.merge_and_unload()), logits(model), rtol=1e-4, atol=1e-4)


@every_method
def test_state_dict_holds_factors_and_labels_and_nothing_else(method: Method) -> None:
    model = adapted(method)
    state = get_peft_model_state_dict(model)
    kinds = {key.rpartition(".localized_")[2] for key in state}
    glob = {"global_A.weight", "global_B.weight"}
    local = {"local_A.weight", "local_B.weight", "row_labels", "col_labels"}
    expected = {"lora-by-share": glob, "lora-by-clusters": local, "cps-lora": local}.get(method.name, glob | local)
    assert kinds == expected
    assert all(value.dtype == (torch.int8 if "labels" in key else torch.float32) for key, value in state.items())


class Wrapped(nn.Module):
    """As FSDP1 wraps a block: its name is in the names of modules, and not in those of the whole state."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = block


@every_method
def test_the_whole_state_of_blocks_that_fsdp1_wraps(method: Method) -> None:
    model = adapted(method)
    state, expected = model.state_dict(), get_peft_model_state_dict(model)
    blocks = model.base_model.model.model.layers
    for number, block in enumerate(blocks):
        blocks[number] = Wrapped(block)
    found = get_peft_model_state_dict(model, state_dict=state)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@every_method
def test_injection_and_its_state_dict(method: Method) -> None:
    model = inject_adapter_in_model(method.config(target_modules=LLAMA_TARGETS), tiny_llama()).eval()
    state = get_peft_model_state_dict(model)
    other = inject_adapter_in_model(method.config(target_modules=LLAMA_TARGETS, seed=3), tiny_llama()).eval()
    result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "localized_" in key]
    assert torch.equal(logits(other), logits(model))
    assert_same_placement(other, model)
    low = inject_adapter_in_model(method.config(target_modules=LLAMA_TARGETS), tiny_llama(), low_cpu_mem_usage=True)
    set_peft_model_state_dict(low, state, low_cpu_mem_usage=True)
    assert torch.equal(logits(low.eval()), logits(model))


@every_method
def test_transformers_load_adapter(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    model.save_pretrained(tmp_path)
    back = tiny_llama()
    back.load_adapter(str(tmp_path))
    assert torch.equal(logits(back.eval()), logits(model))
    assert_same_placement(back, model)


def test_transformers_add_adapter() -> None:
    model = tiny_llama()
    try:
        model.add_adapter(G_LORA.config(target_modules=LLAMA_TARGETS))
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"transformers' add_adapter needs a newer PEFT, for every method: {error}")
    assert len(adapted_layers(model, "default")) == 8


def test_hot_swapping_is_refused(tmp_path: Path) -> None:
    model = adapted(CPS_LORA)
    model.save_pretrained(tmp_path)
    before = logits(model)
    with pytest.raises(ValueError, match=r"Hotswapping only supports LORA but .*LOCALIZED"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default")
    assert torch.equal(logits(model), before)


def test_a_resized_vocabulary_is_told_of_when_it_is_saved(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(VOCABULARY + 3)
    config = CPS_LORA.config(target_modules=LLAMA_TARGETS, base_model_name_or_path=str(tmp_path / "base"))
    model = get_peft_model(base, config)
    with (
        pytest.warns(UserWarning, match="embedding layer has been resized"),  # PEFT's own
        pytest.warns(UserWarning, match=r"also holds .*lm_head.weight: was the vocabulary resized\? This adapter will"),
    ):
        model.save_pretrained(tmp_path / "adapter")
    model.save_pretrained(tmp_path / "alone", save_embedding_layers=False)
    expected, base = logits(model), model.unload()
    assert not torch.equal(logits(base), expected)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "alone").eval()), expected)
