"""Several adapters together: one for each sample of a batch, their weighted sum, and one in the place of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftMixedModel, PeftModel, get_peft_model
from torch import Tensor

import localora
from adapted_models import adapted, after_events, logits
from localora import hot_swap
from localora.adapter.saved_layers import AdapterFileError
from localora.adapter.status import adapted_layers
from localora.errors import AdapterError, LocaloraError
from method_table import BY_NAME, Method, every_method, every_placed_method
from tiny_experts import tiny_experts
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

G_LORA, CPS_LORA, HYBRID = BY_NAME["g-lora"], BY_NAME["cps-lora"], BY_NAME["hybrid"]


def two_adapters(first: Method = CPS_LORA, second: Method = G_LORA, **second_options: object) -> PeftModel:
    model = adapted(first)
    model.add_adapter("other", second.config(**{"target_modules": LLAMA_TARGETS, "seed": 5, **second_options}))
    return model.eval()


@torch.no_grad()
def mixed(model: PeftModel, names: list[str]) -> Tensor:
    return model(input_ids=token_batch()["input_ids"], adapter_names=names).logits


@every_method
def test_each_sample_has_the_adapter_that_it_names(method: Method) -> None:
    model = two_adapters(method)
    rows = {"default": logits(model)[0]}
    model.set_adapter("other")
    rows["other"] = logits(model)[1]
    with model.disable_adapter():
        rows["__base__"] = logits(model)[2]
    model.set_adapter("default")
    for i, (name, expected) in enumerate(rows.items()):
        torch.testing.assert_close(mixed(model, list(rows))[i], expected, rtol=1e-4, atol=1e-4, msg=name)
    assert torch.equal(logits(model)[0], rows["default"])  # nothing stays behind


def test_samples_of_a_generation_have_their_adapters_too() -> None:
    model = two_adapters()
    ids = token_batch()["input_ids"]
    together = model.generate(input_ids=ids, adapter_names=["default", "other", "__base__"], max_new_tokens=4)
    alone = model.generate(input_ids=ids[:1], max_new_tokens=4)
    assert torch.equal(together[0], alone[0])


@pytest.mark.parametrize(
    ("names", "prepare", "message"),
    [
        (["default"], lambda model: None, "1 names for 3 samples"),
        (["default", "x", "other"], lambda model: None, "adapter_names holds 'x'; the model has default, other"),
        (["default"] * 3, lambda model: model.train(), "is for inference"),
        (["default"] * 3, lambda model: model.merge_adapter(), "call unmerge_adapter"),
    ],
)
def test_what_a_mixed_batch_cannot_be(names: list[str], prepare: object, message: str) -> None:
    model = two_adapters()
    prepare(model)
    with pytest.raises(AdapterError, match=message):
        mixed(model, names)


@pytest.mark.parametrize(("first", "second"), [(CPS_LORA, G_LORA), (HYBRID, CPS_LORA), (G_LORA, G_LORA)])
def test_a_weighted_sum_is_exact(first: Method, second: Method, tmp_path: Path) -> None:
    model = two_adapters(first, second, target_modules=["q_proj", "down_proj"])
    model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum")
    for name, layer in adapted_layers(model, "sum"):
        expected = 0.5 * layer.get_delta_weight("default")
        if "other" in layer.localized_layout:
            expected = expected - 2.0 * layer.get_delta_weight("other")
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, rtol=1e-4, atol=1e-5, msg=name)
    model.set_adapter("sum")
    before = logits(model)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    back = PeftModel.from_pretrained(tiny_llama(), tmp_path / "sum").eval()
    torch.testing.assert_close(logits(back), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"layers_to_transform": [0]}, {"layers_to_transform": [1]}),
        ({"target_modules": ["q_proj"], "exclude_modules": ["v_proj"]}, {"target_modules": ["v_proj"]}),
        ({"target_modules": ".*q_proj"}, {"target_modules": ["v_proj"]}),
        ({"target_modules": ["q_proj"]}, {"target_modules": ["v_proj"], "target_parameters": ["experts.down_proj"]}),
    ],
)
def test_a_sum_has_the_layers_of_all_whatever_their_configs_leave_out(
    first: dict[str, object], second: dict[str, object]
) -> None:
    base = tiny_experts("mixtral")
    model = get_peft_model(base, CPS_LORA.config(**{"target_modules": ["q_proj", "v_proj"], **first}))
    model.add_adapter("other", CPS_LORA.config(**{"target_modules": ["q_proj", "v_proj"], "seed": 3, **second}))
    model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum")
    summed = dict(adapted_layers(model, "sum"))
    assert summed.keys() == dict((*adapted_layers(model, "default"), *adapted_layers(model, "other"))).keys()
    for name, layer in summed.items():
        weights = {"default": 0.5, "other": -2.0}
        expected = sum(w * layer.get_delta_weight(n) for n, w in weights.items() if n in layer.localized_layout)
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("frozen", ["factors", "merged"])
def test_a_sum_takes_what_events_left_too(frozen: str) -> None:
    model, _ = after_events("cps-lora", frozen)
    model.add_adapter("other", G_LORA.config(target_modules=LLAMA_TARGETS))
    model.add_weighted_adapter(["default", "other"], [1.5, -0.5], "sum")
    for name, layer in adapted_layers(model, "sum"):
        expected = 1.5 * layer.get_delta_weight("default") - 0.5 * layer.get_delta_weight("other")
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["default", "x"], [1, 1], "sum"), "there is no adapter 'x'; the model has default, other"),
        ((["default", "other"], [1, 1], "other"), "'other' is taken"),
        ((["default", "other"], [1], "sum"), "2 adapters with 1 weights"),
        ((["default", "other"], [1, float("nan")], "sum"), "weights must be finite"),
        ((["default", "other"], [1, 1], "sum", "ties"), "combination_type='ties' is not supported"),
    ],
)
def test_what_cannot_be_summed_leaves_the_model_as_it_was(arguments: tuple[object, ...], message: str) -> None:
    model = two_adapters()
    before = logits(model)
    with pytest.raises(AdapterError, match=message):
        model.add_weighted_adapter(*arguments)
    assert list(model.peft_config) == ["default", "other"]
    assert torch.equal(logits(model), before)


@every_placed_method
def test_hot_swap_keeps_every_parameter_and_takes_the_scale(method: Method, tmp_path: Path) -> None:
    model, other = adapted(method), adapted(method, seed=9, alpha=40.0)
    other.save_pretrained(tmp_path)
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    hot_swap(model, tmp_path)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert torch.equal(logits(model), logits(other))


def test_fewer_clusters_fit_in_the_place_of_more(tmp_path: Path) -> None:
    """Their factors have the same shapes: labels that name no cluster of the model's leave that one empty."""
    model, few = adapted(CPS_LORA, clusters=4), adapted(CPS_LORA, clusters=2, seed=9, alpha=40.0)
    few.save_pretrained(tmp_path / "few")
    adapted(CPS_LORA, clusters=4).save_pretrained(tmp_path / "more")
    hot_swap(model, tmp_path / "few")
    afresh = logits(PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "few")))
    torch.testing.assert_close(logits(model), afresh, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "again"))
    torch.testing.assert_close(logits(again), afresh, rtol=1e-4, atol=1e-4)
    with pytest.raises(AdapterError, match=r"more has 4 clusters, 'default' 2; load it under another name"):
        hot_swap(few, tmp_path / "more")


def test_an_adapter_of_other_shapes_takes_nobodys_place(tmp_path: Path) -> None:
    model = adapted(CPS_LORA)
    before = logits(model)
    adapted(CPS_LORA, r=5).save_pretrained(tmp_path / "r")
    adapted(CPS_LORA, target_modules=["q_proj"]).save_pretrained(tmp_path / "fewer")
    for folder, message in (("r", "this model and config need"), ("fewer", "lacks 6 of the 8 layers")):
        with pytest.raises(AdapterFileError, match=message):
            hot_swap(model, tmp_path / folder)
    assert torch.equal(logits(model), before)


def test_an_adapter_with_modules_to_save_is_not_swapped(tmp_path: Path) -> None:
    model = adapted(CPS_LORA, modules_to_save=["lm_head"], alpha=3.0)
    before = logits(model)
    adapted(CPS_LORA, seed=9).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="'default' has modules_to_save, which are not swapped"):
        hot_swap(model, tmp_path)
    assert torch.equal(logits(model), before)
    assert model.peft_config["default"].alpha == 3.0


def test_base_and_adapter_in_one_call(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    model = adapted(CPS_LORA, task_type="CAUSAL_LM")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(localora.load(tmp_path / "adapter").eval()), logits(model))
    model.peft_config["default"].base_model_name_or_path = None
    model.save_pretrained(tmp_path / "orphan")
    with pytest.raises(LocaloraError, match="does not say which base model"):
        localora.load(tmp_path / "orphan")


def test_a_mixed_model_of_peft_refuses_by_name() -> None:
    with pytest.raises(ValueError, match=r"LOCALIZED|GLoraConfig"):
        PeftMixedModel(tiny_llama(), G_LORA.config(target_modules=LLAMA_TARGETS))
