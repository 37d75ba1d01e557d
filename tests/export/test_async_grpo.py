"""TRL's asynchronous GRPO takes adapters only of PEFT's LoRA; ours reaches vLLM as merged weights, which are right."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch

from adapted_models import adapted
from method_table import BY_NAME
from tiny_models import tiny_llama


def test_our_adapters_are_sent_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trl = importlib.import_module("trl.experimental.async_grpo.async_grpo_trainer")
    model = adapted(BY_NAME["hybrid"])
    with pytest.raises(ValueError, match=r"supports LoRA adapters only, got `CpsLoraConfig`\. Sync merged weights"):
        trl.validate_lora_for_vllm_sync(model)
    update = {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    base = dict(tiny_llama().named_parameters())
    model.merge_adapter()
    sent = dict(trl._iter_vllm_named_params(model))
    assert sent.keys() == base.keys()
    assert len(update) == 8
    for name, weight in sent.items():
        torch.testing.assert_close(weight, base[name] + update.get(name, 0.0))
