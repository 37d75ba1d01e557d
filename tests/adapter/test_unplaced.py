"""An adapter that was never placed says so in its first training step, and does no harm before."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from adapted_models import unplaced
from localora import UnplacedAdapterError, calibrate, export_lora, placement_of
from localora.adapter.status import adapted_layers
from method_table import METHODS, Method, every_placed_method
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

REMEDY = r"'default' has no placement yet.*localora\.calibrate.*LocalizationCallback.*placement='random'"


@every_placed_method
@pytest.mark.parametrize("checkpointing", ["none", "plain", "reentrant"])
def test_first_training_step_raises(method: Method, checkpointing: str) -> None:
    model = unplaced(method).train()
    if checkpointing != "none":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})

    def step() -> None:
        model(**token_batch()).loss.backward()

    with pytest.raises(UnplacedAdapterError, match=REMEDY):
        step()
    assert all(p.grad is None for n, p in model.named_parameters() if "localized_local" in n)


@every_placed_method
def test_evaluation_equals_the_base_model(method: Method) -> None:
    expected = tiny_llama().eval()(**token_batch())
    model = unplaced(method)
    for mode in (model.train, model.eval):
        mode()
        with torch.no_grad():
            assert torch.equal(model(**token_batch()).logits, expected.logits)
    assert torch.equal(model(**token_batch()).logits, expected.logits)  # eval mode with gradients


@every_placed_method
def test_merge_and_export_raise(method: Method, tmp_path: Path) -> None:
    model = unplaced(method)
    before = {name: layer.get_base_layer().weight.clone() for name, layer in adapted_layers(model, "default")}
    for act in (model.merge_adapter, model.merge_and_unload, lambda: export_lora(model, tmp_path / "out")):
        with pytest.raises(UnplacedAdapterError, match=REMEDY):
            act()
    with pytest.raises(UnplacedAdapterError, match=REMEDY):
        placement_of(model)
    for name, layer in adapted_layers(model, "default"):
        assert torch.equal(layer.get_base_layer().weight, before[name])
    assert not (tmp_path / "out").exists()


@every_placed_method
def test_an_unplaced_file_loads_and_stays_unplaced(method: Method, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="saving the adapter 'default', which has no placement yet"):
        unplaced(method).save_pretrained(tmp_path)
    with pytest.raises(UnplacedAdapterError, match="saved before it was placed"):
        export_lora(tmp_path, tmp_path / "out")
    back = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True).train()
    with pytest.raises(UnplacedAdapterError, match=REMEDY):
        back(**token_batch())
    calibrate(back, [token_batch()])
    back(**token_batch()).loss.backward()
    # Loaded over a placed adapter of the same name, it is unplaced again.
    back.load_adapter(tmp_path, "default", is_trainable=True)
    with pytest.raises(UnplacedAdapterError, match=REMEDY):
        back(**token_batch())


def test_nothing_to_place_is_placed_from_the_start() -> None:
    for method in METHODS[:2]:
        model = unplaced(method).train()
        model(**token_batch()).loss.backward()
        assert all(partition.mask().all() for p in placement_of(model).values() for partition in p.partitions)


def test_an_inactive_unplaced_adapter_is_no_obstacle() -> None:
    model = get_peft_model(tiny_llama(), METHODS[2].config(target_modules=LLAMA_TARGETS)).train()
    model.add_adapter("later", METHODS[3].config(target_modules=LLAMA_TARGETS, placement="calibrate"))
    model(**token_batch()).loss.backward()
    with model.disable_adapter():
        model(**token_batch())
    model.set_adapter("later")
    with pytest.raises(UnplacedAdapterError, match="'later'"):
        model(**token_batch())


@every_placed_method
def test_generating_with_an_unplaced_adapter_warns_and_a_single_pass_does_not(method: Method) -> None:
    model = unplaced(method).eval()
    ids = token_batch()["input_ids"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(input_ids=ids)
    assert not [w for w in caught if "placement" in str(w.message)]
    with pytest.warns(UserWarning, match="generating with the adapter 'default', which has no placement yet"):
        model.generate(input_ids=ids, max_new_tokens=3)
