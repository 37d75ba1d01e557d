from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from localora.lab.model import ModelError, base
from localora.lab.model.base import load_base_model


def save_tiny(folder: Path, **special: str) -> LlamaForCausalLM:
    backend = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<pad>": 2}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=3, pad_token_id=None, **sizes))
    model.save_pretrained(folder)
    return model


def test_a_folder_loads_in_the_asked_dtype(tmp_path):
    saved = save_tiny(tmp_path, eos_token="</s>", pad_token="<pad>")
    model, tokenizer = load_base_model(str(tmp_path))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), saved.parameters(), strict=True))
    assert tokenizer.pad_token == "<pad>"
    assert model.config.pad_token_id == model.generation_config.pad_token_id == 2
    assert load_base_model(str(tmp_path), torch.bfloat16)[0].dtype == torch.bfloat16


def test_eos_pads_where_there_is_no_pad_token(tmp_path):
    save_tiny(tmp_path, eos_token="</s>")
    model, tokenizer = load_base_model(str(tmp_path))
    assert tokenizer.pad_token == "</s>"
    assert model.config.pad_token_id == tokenizer.pad_token_id == 1


def test_no_token_to_pad_with(tmp_path):
    save_tiny(tmp_path)
    with pytest.raises(ModelError, match="neither a pad nor an EOS token"):
        load_base_model(str(tmp_path))


def test_the_name_of_the_built_in_model(tmp_path, monkeypatch):
    save_tiny(tmp_path, eos_token="</s>")
    monkeypatch.setattr(base, "smollm2_folder", lambda: tmp_path)
    assert load_base_model("SmolLM2-135M")[0].config.hidden_size == 32


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "runs/model/final"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(ModelError, match=f"model folder '{name}' does not exist"):
        load_base_model(name)


def test_a_file_and_an_empty_folder(tmp_path):
    (tmp_path / "model.gguf").write_text("x")
    with pytest.raises(ModelError, match="is a file; give the folder"):
        load_base_model(str(tmp_path / "model.gguf"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty'.*\n.*needs config\.json"):
        load_base_model(str(tmp_path / "empty"))


def test_offline_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"'nobody/nothing'.*\n.*taken for a Hub id.*smollm2-135m"):
        load_base_model("nobody/nothing")
