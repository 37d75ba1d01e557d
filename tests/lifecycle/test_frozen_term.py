"""The frozen term goes wherever the adapter goes: files, exports, merged weights, copies, other adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from moving import first_layer, trainable
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapted_models import after_events
from localora import PlacementError, export_lora, placement_of
from localora.adapter.status import adapted_layers
from method_table import BY_NAME, Method, every_method
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

MODES = pytest.mark.parametrize("frozen", ["factors", "merged"])


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=token_batch()["input_ids"]).logits


def close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@MODES
@every_method
def test_it_is_saved_and_loaded(method: Method, frozen: str, tmp_path: Path) -> None:
    model, repartitioner = after_events(method.name, frozen)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert loaded.peft_config["default"].consolidated_rank == repartitioner.adapter.config.consolidated_rank > 0
    close(logits(loaded), logits(model))
    assert placement_of(loaded) == placement_of(model)
    for (_, ours), (_, theirs) in zip(adapted_layers(model, "default"), adapted_layers(loaded, "default"), strict=True):
        ours_whole, theirs_whole = ours.frozen_factors("default"), theirs.frozen_factors("default")
        assert ours_whole is not None
        assert theirs_whole is not None
        assert all(torch.equal(a, b) for a, b in zip(ours_whole, theirs_whole, strict=True))


@MODES
def test_it_is_loaded_by_transformers(frozen: str, tmp_path: Path) -> None:
    model, _ = after_events("hybrid", frozen)
    model.save_pretrained(tmp_path)
    loaded = tiny_llama()
    loaded.load_adapter(str(tmp_path))
    close(logits(loaded), logits(model))


@MODES
def test_it_is_loaded_into_a_model_with_other_events_behind_it(frozen: str, tmp_path: Path) -> None:
    """None, as where a Trainer resumes, or more, as where it goes back to the best checkpoint."""
    model, repartitioner = after_events("cps-lora", frozen, events=2)
    model.save_pretrained(tmp_path)
    for events in (0, 4):
        other, _ = after_events("cps-lora", frozen, events)
        other.load_adapter(str(tmp_path), "default", is_trainable=True)
        assert other.peft_config["default"].consolidated_rank == repartitioner.adapter.config.consolidated_rank
        close(logits(other), logits(model))


@MODES
@every_method
def test_it_is_merged_and_unmerged(method: Method, frozen: str) -> None:
    model, _ = after_events(method.name, frozen)
    expected, original = logits(model), logits(tiny_llama())
    layer = first_layer(model)
    plain = dict(tiny_llama().named_modules())["model.layers.0.self_attn.q_proj"].weight
    model.merge_adapter()
    torch.testing.assert_close(layer.get_base_layer().weight - plain, layer.get_delta_weight("default"))
    close(logits(model), expected)
    model.unmerge_adapter()
    close(logits(model), expected)
    with model.disable_adapter():
        close(logits(model), original)
    close(logits(model), expected)
    close(logits(model.merge_and_unload()), expected)


@MODES
def test_it_is_taken_away_with_the_adapter(frozen: str) -> None:
    original = logits(tiny_llama())
    model, _ = after_events("hybrid", frozen)
    close(logits(model.unload()), original)
    model, _ = after_events("hybrid", frozen)
    expected = logits(model)
    model.add_adapter("other", BY_NAME["g-lora"].config(target_modules=LLAMA_TARGETS, init_weights=True))
    model.set_adapter("other")
    close(logits(model), original)
    model.set_adapter("default")
    close(logits(model), expected)
    model.set_adapter("other")
    model.delete_adapter("default")
    close(logits(model), original)


def test_another_adapter_is_merged_without_it() -> None:
    model, _ = after_events("hybrid", "merged")
    model.add_adapter("other", BY_NAME["g-lora"].config(target_modules=LLAMA_TARGETS))
    model.set_adapter("other")
    expected = logits(model)
    model.set_adapter("default")
    again, _ = after_events("hybrid", "merged")
    assert again.base_model.model.model.layers[0].self_attn.q_proj.localized_folded
    model.merge_adapter(["other"])
    close(logits(model), expected)


@MODES
def test_a_reference_copy_has_it_too(frozen: str) -> None:
    """TRL makes its reference as a second adapter of the same config, and copies parameters but no buffers."""
    model, _ = after_events("cps-lora", frozen)
    expected = logits(model)
    model.add_adapter("reference", model.peft_config["default"])
    for _, layer in adapted_layers(model, "default"):
        for ours, theirs in zip(layer.trained("default").values(), layer.trained("reference").values(), strict=True):
            theirs.data.copy_(ours.data)
    model.set_adapter("reference")
    close(logits(model), expected)


@pytest.mark.parametrize("damage", ["rank", "missing", "shape", "uneven"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    model, _ = after_events("cps-lora", "factors")
    model.save_pretrained(tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors = load_file(weights)
    key = next(key for key in tensors if key.endswith("localized_frozen_A"))
    if damage == "rank":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"consolidated_rank": 7}))
    elif damage == "missing":
        tensors = {key: tensor for key, tensor in tensors.items() if "frozen" not in key}
    elif damage == "shape":
        tensors[key] = tensors[key][:, :-1].contiguous()
    else:
        tensors[key] = tensors[key][:-1].contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})
    expected = {
        "rank": r"localized_frozen_A has shape \(24, \d+\) in the adapter file, but its config needs \(7, ",
        "missing": r"lacks .*localized_frozen_A",
        "shape": "localized_frozen_A.* has shape",
        "uneven": r"localized_frozen_A has shape \(23, \d+\) in the adapter file, but its config needs \(24, ",
    }
    with pytest.raises(PlacementError, match=expected[damage]):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
    with pytest.raises(PlacementError, match="localized_frozen_A"):
        export_lora(tmp_path, tmp_path / "lora")


@MODES
def test_generation_uses_it(frozen: str) -> None:
    model, _ = after_events("hybrid", frozen)
    prompt = token_batch(examples=1)["input_ids"]
    options = {"max_new_tokens": 5, "do_sample": False}
    expected = model.generate(input_ids=prompt, **options)
    assert torch.equal(model.merge_and_unload().generate(input_ids=prompt, **options), expected)


def test_training_leaves_it_alone() -> None:
    model, _ = after_events("cps-lora", "factors")
    model.train()
    buffers = {name: value.clone() for name, value in model.state_dict().items() if "frozen" in name}
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(**token_batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert buffers
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in buffers.items())
