"""Several adapters in one model: switching, deleting, mixing methods, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
)
from torch import Tensor

from adapted_models import adapted, differ, logits
from localora import CpsLoraConfig, GLoraConfig, calibrate, placement_of
from localora.adapter.status import adapted_layers
from method_table import BY_NAME, METHODS, Method, every_method
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

G_LORA, CPS_LORA = BY_NAME["g-lora"], BY_NAME["cps-lora"]


@every_method
def test_several_adapters(method: Method, base_logits: Tensor) -> None:
    model = adapted(method)
    first = logits(model)
    model.add_adapter("second", method.config(target_modules=["q_proj"], r=8, seed=1))
    assert torch.equal(logits(model), first)  # added, not active
    assert all(("second" in n) is not p.requires_grad for n, p in model.named_parameters() if "localized_" in n)

    model.set_adapter("second")
    second = logits(model)
    assert differ(second, first)
    assert differ(second, base_logits)
    assert all(("second" in n) is p.requires_grad for n, p in model.named_parameters() if "localized_" in n)
    with model.disable_adapter():
        assert torch.equal(logits(model), base_logits)
    assert torch.equal(logits(model), second)

    both = copy.deepcopy(model)
    both.base_model.set_adapter(["default", "second"])
    together = logits(both)
    assert differ(together, first)
    assert differ(together, second)
    torch.testing.assert_close(logits(both.merge_and_unload()), together, rtol=1e-3, atol=1e-3)

    model.delete_adapter("default")
    assert torch.equal(logits(model), second)
    assert not any("default" in name for name in model.state_dict())
    for _, layer in adapted_layers(model, "second"):
        assert list(layer.localized_layout) == list(layer.localized_verified) == ["second"]
    assert not adapted_layers(model, "default")


def test_g_lora_and_cps_lora_in_one_model(tmp_path: Path) -> None:
    model = adapted(G_LORA)
    g_lora = logits(model)
    model.add_adapter("cps", CPS_LORA.config(target_modules=["q_proj", "up_proj"]))
    model.add_adapter("lora", METHODS[0].config(target_modules=["q_proj"]))
    model.set_adapter("cps")
    cps = logits(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), g_lora)
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    back.load_adapter(tmp_path / "cps", "cps")
    back.load_adapter(tmp_path / "lora", "lora")
    assert isinstance(back.peft_config["default"], GLoraConfig)
    assert isinstance(back.peft_config["cps"], CpsLoraConfig)
    torch.testing.assert_close(logits(back.eval()), g_lora)
    back.set_adapter("cps")
    torch.testing.assert_close(logits(back), cps)
    for name in ("default", "cps", "lora"):
        assert placement_of(back, name) == placement_of(model, name)


def test_a_copy_on_the_same_config_object_takes_over_the_labels() -> None:
    """TRL's reference adapter: the same config object, parameters copied, buffers not."""
    model = adapted(CPS_LORA, placement="calibrate")
    calibrate(model, [token_batch()])
    model.add_adapter("ref", model.peft_config["default"])
    assert placement_of(model, "ref") == placement_of(model, "default")


def test_such_a_copy_takes_over_what_a_re_partition_left_behind() -> None:
    model = adapted(CPS_LORA)
    for _, layer in adapted_layers(model, "default"):
        layer.set_frozen("default", torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2))
    model.peft_config["default"].consolidated_rank = 2
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in list(model.named_parameters()):
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    expected = logits(model)
    for _, layer in adapted_layers(model, "default"):
        layer.localized_frozen_A["default"].zero_()  # the policy's next move must not change its reference
    model.set_adapter("ref")
    assert torch.equal(logits(model), expected)


def test_mixed_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"(?s)not compatible.*LOCALIZED|LOCALIZED.*not compatible|not supported"):
        get_peft_model(tiny_llama(), G_LORA.config(target_modules=LLAMA_TARGETS), mixed=True)
