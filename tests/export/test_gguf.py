"""The GGUF adapter: names and rows as llama.cpp has them, and llama.cpp's own log-probabilities with it."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from adapted_models import adapted
from llama_cpp import KINDS, LlamaCpp, write_base
from localora import CpsLoraConfig, ExportError, GLoraConfig, calibrate, export_lora
from localora.export.gguf_file import FAMILIES
from method_table import BY_NAME
from tiny_models import GPT2_TARGETS, VOCABULARY, tiny_gpt2, tiny_llama, token_batch

CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3_text": Gemma3TextConfig,
}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny(kind: str) -> PreTrainedModel:
    """Two blocks with grouped queries, a head size of its own where the architecture has one, and heads to permute."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.1 if "gemma" in kind else 0.2,  # large activations, but for Gemma's coarse GELU
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind not in ("llama", "mistral", "qwen2"):
        options["head_dim"] = 16
    if kind in ("gemma2", "gemma3_text"):
        options["query_pre_attn_scalar"] = 16
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](**options)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases of their own, so that leaving one out shows
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    return model


def test_every_family_is_compared_with_llama_cpp() -> None:
    assert set(FAMILIES) == set(KINDS) == set(CONFIGS)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return fields, {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}


def test_contents_of_the_file(tmp_path: Path) -> None:
    model = adapted(BY_NAME["cps-lora"])
    report = export_lora(model, tmp_path / "out", gguf=True)
    fields, tensors = read(tmp_path / "out" / "adapter.gguf")
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == report.rank == 16
    plain = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(tensors) == len(plain) == 16
    for ours, theirs in (("mlp.down_proj", "ffn_down"), ("mlp.gate_proj", "ffn_gate"), ("self_attn.q_proj", "attn_q")):
        name = f"base_model.model.model.layers.1.{ours}"
        assert torch.equal(tensors[f"blk.1.{theirs}.weight.lora_a"], plain[f"{name}.lora_A.weight"])
        B, B_file = plain[f"{name}.lora_B.weight"], tensors[f"blk.1.{theirs}.weight.lora_b"]
        if theirs == "attn_q":  # 4 heads of 8 rows: 0 4 1 5 2 6 3 7 | 8 12 ...
            B = B[torch.tensor([head * 8 + i + half * 4 for head in range(4) for i in range(4) for half in (0, 1)])]
        assert torch.equal(B_file, B)


def test_a_folder_gives_the_same_file_with_the_base_s_config(tmp_path: Path) -> None:
    model = adapted(BY_NAME["g-lora"])
    tiny_llama().config.save_pretrained(tmp_path / "base")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    export_lora(model, tmp_path / "a", gguf=True)
    export_lora(tmp_path / "adapter", tmp_path / "b", gguf=True)
    export_lora(tmp_path / "adapter", tmp_path / "c", gguf=True, base=tmp_path / "base")
    files = [(tmp_path / name / "adapter.gguf").read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]
    with pytest.raises(ExportError, match=r"(?s)no config of the base model .*elsewhere.*give it with --base"):
        export_lora(tmp_path / "adapter", tmp_path / "d", gguf=True, base=tmp_path / "elsewhere")
    assert not (tmp_path / "d").exists()


# Refusals, each before anything is written


def test_an_architecture_that_was_not_compared(tmp_path: Path) -> None:
    model = get_peft_model(tiny_gpt2(), BY_NAME["g-lora"].config(target_modules=GPT2_TARGETS))
    with pytest.raises(ExportError, match=r"architecture 'gpt2' is not supported; it is for llama, mistral, .*Leave"):
        export_lora(model, tmp_path / "out", gguf=True)
    assert not (tmp_path / "out").exists()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ExportError, match=r"needs the package gguf: pip install 'localora\[gguf\]'"):
        export_lora(adapted(BY_NAME["g-lora"]), tmp_path / "out", gguf=True)
    export_lora(adapted(BY_NAME["g-lora"]), tmp_path / "out")


def test_a_head_that_is_tied_to_the_embedding(tmp_path: Path) -> None:
    base = tiny_llama()
    model = get_peft_model(base, BY_NAME["g-lora"].config(target_modules=["lm_head"]))
    base.config.tie_word_embeddings = True  # only now: PEFT warns of it
    with pytest.raises(ExportError, match="shares with its embedding"):
        export_lora(model, tmp_path / "out", gguf=True)
    base.config.tie_word_embeddings = False
    export_lora(model, tmp_path / "out", gguf=True)
    assert "output.weight.lora_a" in read(tmp_path / "out" / "adapter.gguf")[1]


def test_the_config_of_another_model(tmp_path: Path) -> None:
    model = adapted(BY_NAME["g-lora"])
    config = LlamaConfig(num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
    config.save_pretrained(tmp_path / "shallow")
    with pytest.raises(ExportError, match=r"hold no matrix for the layer model\.layers\.1\..*adapter of another model"):
        export_lora(model, tmp_path / "out", gguf=True, base=tmp_path / "shallow")
    LlamaConfig(hidden_size=40, num_hidden_layers=2, num_attention_heads=5).save_pretrained(tmp_path / "heads")
    with pytest.raises(ExportError, match=r"k_proj has 16 rows, which 5 heads do not divide"):
        export_lora(model, tmp_path / "out", gguf=True, base=tmp_path / "heads")
    assert not (tmp_path / "out").exists()


# llama.cpp


@torch.no_grad()
def reference(model: torch.nn.Module, prompts: list[list[int]]) -> Tensor:
    """Log-probabilities of the token after each prompt, float64 `(prompts, vocabulary)`."""
    logits = [model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    return torch.log_softmax(torch.stack(logits).double(), dim=-1)


def train(model: torch.nn.Module, steps: int = 60) -> None:
    """Learn three sentences by heart: an update that is nothing like noise."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**token_batch(seed=3)).loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_llama_cpp_gives_the_same_log_probabilities(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is not installed: pip install xllamacpp")
    base = tiny(kind)
    file = write_base(base, tmp_path / "base.gguf")
    prompts = [row[:length].tolist() for row in token_batch(seed=3)["input_ids"] for length in range(1, 10)]
    prompts += [row[:length].tolist() for row in token_batch(seed=9)["input_ids"] for length in range(1, 10)]
    plain = reference(base, prompts)
    unadapted = LlamaCpp(file)
    theirs = torch.stack([unadapted.log_probabilities(prompt) for prompt in prompts])
    # The file of the base model is right. llama.cpp takes Gemma's GELU from a table in half precision.
    assert (theirs - plain).abs().max() < (5e-3 if "gemma" in kind else 1e-4)

    options = {"r": 4, "target_modules": ALL_LINEAR, "task_type": "CAUSAL_LM"}
    cps = kind in ("llama", "qwen3", "gemma2")
    model = get_peft_model(base, CpsLoraConfig(**options) if cps else GLoraConfig(local_size=0.5, **options))
    calibrate(model, [token_batch(seed=3)])
    train(model)
    export_lora(model, tmp_path / "out", gguf=True)
    ours = reference(model, prompts)
    engine = LlamaCpp(file, tmp_path / "out" / "adapter.gguf")
    theirs = torch.stack([engine.log_probabilities(prompt) for prompt in prompts])
    likely = ours > -20  # beyond, float32 rounds the logits' spread, and nobody samples there
    error = (theirs - ours)[likely].abs().max()
    effect = (plain - ours).abs().amax(dim=1).median()
    agreement = (theirs.argmax(dim=1) == ours.argmax(dim=1)).double().mean()
    print(f"{kind}: largest difference {error:.1e}, adapter's effect {effect:.1f} nats, top-1 {agreement:.0%}")
    assert error < 1e-2
    assert agreement >= 0.99
    assert effect > 2  # nats: far from the base, by 200 times what may differ
    assert (ours.argmax(dim=1) != plain.argmax(dim=1)).double().mean() > 0.5
