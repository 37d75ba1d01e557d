"""A model folder and recipes small enough to run `localora train` in a test, and a plug to pull."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from localora.lab.training.trainer import CheckedTrainer

_COMMON: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
_PLACED = _COMMON | {"calibration_steps": 2, "repartition": [0.5]}
METHODS: dict[str, dict[str, Any]] = {
    "lora": _COMMON | {"name": "lora"},
    "g-lora": _PLACED | {"name": "g-lora", "local_size": 0.5},
    "cps-lora": _PLACED | {"name": "cps-lora", "clusters": 2},
    "hybrid": _PLACED | {"name": "hybrid", "clusters": 2},
}
OTHERS: dict[str, dict[str, Any]] = {  # each with something of its own before, during or after training
    "pissa": _COMMON | {"name": "pissa"},
    "lora-ga": _COMMON | {"name": "lora-ga", "calibration_steps": 2},
    "adalora": _COMMON | {"name": "adalora", "final_share": 0.2},
    "full": {"name": "full", "r": 4, "target_modules": ["q_proj", "down_proj"]},
}


def save_tiny_model(folder: Path) -> Path:
    """A random Llama with a byte tokenizer, as a folder that `from_pretrained` loads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(["<s>", "</s>", *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # activations of ordinary size, so that six steps teach it something
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_values(model: Path, out: Path, method: str = "cps-lora", **training: Any) -> dict[str, Any]:
    """A complete recipe of 6 steps, without pictures, for they take long; `training` overrides that section."""
    return {
        "model": {"name": str(model), "dtype": "float32"},  # the same on every processor
        "data": {"task": "arithmetic", "train_size": 24, "validation_size": 6, "test_size": 6},
        "method": (METHODS | OTHERS)[method],
        "training": {"steps": 6, "batch_size": 2, "learning_rate": 1e-2, "checkpoint_every": 4} | training,
        "evaluation": {"examples": 4, "curve_examples": 4, "curve_points": 3, "batch_size": 4, "max_new_tokens": 4},
        "output": {"folder": str(out), "plots": False},
    }


def write_recipe(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Pull the plug when the given step begins."""
    original = CheckedTrainer.training_step

    def pulled(self: CheckedTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step + 1 == step:
            raise RuntimeError("plug pulled")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CheckedTrainer, "training_step", pulled)
