"""A base model or an adapter's folder: what loads computes what was saved, and what does not says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import tiny_runs
from localora import CpsLoraConfig, GLoraConfig
from localora.lab.model import ModelError
from localora.lab.model.adapted import load_adapted

LOCALIZED = {"placement": "random", "init_weights": False}
CONFIGS = {
    "LoraConfig": lambda: LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "CpsLoraConfig": lambda: CpsLoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **LOCALIZED),
    "GLoraConfig": lambda: GLoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **LOCALIZED),
}
TOKENS = torch.tensor([[5, 80, 9, 200]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.save_tiny_model(tmp_path_factory.mktemp("base"))


def saved(base: Path, folder: Path, name: str = "CpsLoraConfig") -> PeftModel:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), CONFIGS[name]()).eval()
    model.save_pretrained(folder)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS.to(next(model.parameters()).device)).logits.cpu()


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_computes_what_was_saved(base, tmp_path, name):
    model = saved(base, tmp_path / "adapter", name)
    loaded = load_adapted(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded.model), logits(model))
    assert not torch.allclose(logits(loaded.model), logits(load_adapted(str(base)).model))
    assert (loaded.base, loaded.adapter) == (str(base), str(tmp_path / "adapter"))
    assert type(loaded.config).__name__ == name


def test_a_base_model(base):
    loaded = load_adapted(str(base), dtype=torch.bfloat16)
    assert (loaded.base, loaded.adapter, loaded.config) == (str(base), None, None)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.tokenizer.pad_token_id == 1


def edited(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_adapter_whose_base_is_elsewhere(base, tmp_path):
    model = saved(base, tmp_path)
    edited(tmp_path, base_model_name_or_path="/no/such/base")
    with pytest.raises(ModelError, match=r"(?s)needs its base model: .*/no/such/base.* give it with --base"):
        load_adapted(str(tmp_path))
    torch.testing.assert_close(logits(load_adapted(str(tmp_path), str(base)).model), logits(model))


def test_an_adapter_without_a_base(base, tmp_path):
    saved(base, tmp_path)
    edited(tmp_path, base_model_name_or_path=None)
    with pytest.raises(ModelError, match="names no base model; give it with --base"):
        load_adapted(str(tmp_path))


def test_an_adapter_of_another_model(base, tmp_path):
    saved(base, tmp_path)
    wide = AutoModelForCausalLM.from_pretrained(base).config
    wide.hidden_size, wide.head_dim = 64, 16
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "wide")
    for path in base.glob("tokenizer*"):
        (tmp_path / "wide" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match=r"does not load on .*wide"):
        load_adapted(str(tmp_path), str(tmp_path / "wide"))


def test_folders_of_something_else(base, tmp_path):
    saved(base, tmp_path / "run" / "adapter")
    with pytest.raises(ModelError, match=r"folder of a run; its adapter is in .*run/adapter"):
        load_adapted(str(tmp_path / "run"))
    with pytest.raises(ModelError, match="which is no adapter"):
        load_adapted(str(base), str(base))
    edited(tmp_path / "run" / "adapter", peft_type="NO_SUCH_METHOD")
    with pytest.raises(ModelError, match=r"adapter_config.json is no config that this PEFT reads"):
        load_adapted(str(tmp_path / "run" / "adapter"))
