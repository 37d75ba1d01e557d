"""Adapters and checkpoints give the dW they stand for, and say what is wrong when they cannot."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from localora import export_lora
from localora.errors import AdapterError, LocaloraError
from localora.lab.inspect import InspectionError
from localora.lab.inspect.checkpoints import CheckpointPair
from localora.lab.inspect.microscope import inspect_delta
from localora.lab.inspect.report import InspectionReport
from localora.lab.inspect.source import open_source
from method_table import BY_NAME, Method, every_placed_method
from tiny_models import LLAMA_TARGETS, tiny_llama

QUICK: dict[str, Any] = {"rank": 4, "clusters": (2,), "draws": 2, "layers": ["*.layers.0.self_attn.k_proj"]}


def figures(report: InspectionReport) -> list[Any]:
    """All numbers and verdicts, without what tells the sources apart."""
    return report.record()["layers"]  # type: ignore[no-any-return]


def stock_lora(folder: Path, **options: Any) -> dict[str, Tensor]:
    """Saves a trained-looking LoRA; returns what merging it adds to each weight."""
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=LLAMA_TARGETS, init_lora_weights=False, **options))
    model.save_pretrained(str(folder))
    before = dict(tiny_llama().named_parameters())
    after = dict(model.merge_and_unload().named_parameters())
    targets = [name for name in before if name.split(".")[-2] in LLAMA_TARGETS]
    return {name.removesuffix(".weight"): (after[name] - before[name]).detach() for name in targets}


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 12},
        {"r": 4, "lora_alpha": 12, "use_rslora": True},
        {"r": 4, "lora_alpha": 12, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 30}},
    ],
    ids=["alpha over r", "rank-stabilised", "patterns"],
)
def test_a_stock_lora_folder_gives_what_merging_adds(tmp_path: Path, options: dict[str, Any]) -> None:
    deltas = stock_lora(tmp_path, **options)
    source = open_source(tmp_path, None, "default", None)
    assert set(source.names) == set(deltas)
    for name, delta in deltas.items():
        torch.testing.assert_close(source.load(name).dense(), delta, rtol=1e-4, atol=1e-5)
    assert source.skipped == {}


@every_placed_method
def test_our_adapter_equals_its_plain_export(tmp_path: Path, method: Method) -> None:
    model = get_peft_model(tiny_llama(), method.config(target_modules=LLAMA_TARGETS))
    model.save_pretrained(str(tmp_path / "ours"))
    export_lora(tmp_path / "ours", tmp_path / "plain")
    ours = inspect_delta(tmp_path / "ours", **QUICK)
    assert len(ours.layers) == 1
    assert figures(ours) == figures(inspect_delta(tmp_path / "plain", **QUICK))
    assert figures(ours) == figures(inspect_delta(model, **QUICK))
    assert ours.by_construction == (method.name == "cps-lora" or method.name == "hybrid")


def test_a_lora_model_in_memory_equals_its_folder(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=LLAMA_TARGETS, init_lora_weights=False, r=3)
    model = get_peft_model(tiny_llama(), config)
    model.save_pretrained(str(tmp_path))
    assert figures(inspect_delta(model, **QUICK)) == figures(inspect_delta(tmp_path, **QUICK))


def fine_tuned(llama: LlamaForCausalLM) -> dict[str, Tensor]:
    """Changes the weights as training would; returns the changes of all matrices."""
    generator = torch.Generator().manual_seed(1)
    deltas = {}
    with torch.no_grad():
        for name, weight in llama.named_parameters():
            change = 0.01 * torch.randn(weight.shape, generator=generator)
            before = weight.clone()
            weight += change
            if weight.ndim == 2:
                deltas[name.removesuffix(".weight")] = weight - before
    return deltas


def test_streamed_checkpoints_equal_memory(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    llama.save_pretrained(str(tmp_path / "base"))
    deltas = fine_tuned(llama)
    llama.save_pretrained(str(tmp_path / "tuned"), max_shard_size="20KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 2
    streamed = inspect_delta(tmp_path / "tuned", base=tmp_path / "base", **QUICK)
    assert [layer.name for layer in streamed.layers] == ["model.layers.0.self_attn.k_proj"]
    assert figures(streamed) == figures(inspect_delta({x.name: deltas[x.name] for x in streamed.layers}, **QUICK))

    every = open_source(tmp_path / "tuned", tmp_path / "base", "default", None)
    assert set(every.skipped) == {"model.embed_tokens", "lm_head"}
    assert set(every.names) | set(every.skipped) == set(deltas)
    asked_for = open_source(tmp_path / "tuned", tmp_path / "base", "default", ["lm_head"])
    torch.testing.assert_close(asked_for.load("lm_head").dense(), deltas["lm_head"])
    # shards without their index are read as well
    (tmp_path / "tuned" / "model.safetensors.index.json").unlink()
    assert set(open_source(tmp_path / "tuned", tmp_path / "base", "default", None).names) == set(every.names)


def test_one_pair_of_tensors_at_a_time(
    tmp_path: Path, llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.save_pretrained(str(tmp_path / "base"))
    fine_tuned(llama)
    llama.save_pretrained(str(tmp_path / "tuned"))
    read: list[weakref.ref[Tensor]] = []
    original = CheckpointPair.delta

    def watched(self: CheckpointPair, name: str) -> Tensor:
        assert [earlier() for earlier in read if earlier() is not None] == []
        delta = original(self, name)
        read.append(weakref.ref(delta))
        return delta

    monkeypatch.setattr(CheckpointPair, "delta", watched)
    done: list[tuple[int, int]] = []
    inspect_delta(
        tmp_path / "tuned",
        base=tmp_path / "base",
        progress=lambda *counts: done.append(counts),
        **(QUICK | {"layers": ["*.layers.0.self_attn.[kq]_proj"]}),
    )
    assert len(read) == 2
    assert done == [(1, 2), (2, 2)]


def test_checkpoints_that_do_not_match(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    llama.save_pretrained(str(tmp_path / "base"))
    weights = load_file(tmp_path / "base" / "model.safetensors")

    def tuned(name: str, tensors: dict[str, Tensor]) -> Path:
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        return tmp_path / name

    key = "model.layers.1.mlp.up_proj.weight"
    lacking = tuned("lacking", {name: w for name, w in weights.items() if name != key})
    with pytest.raises(InspectionError, match=r"lacking lacks model\.layers\.1\.mlp\.up_proj; are they"):
        inspect_delta(lacking, base=tmp_path / "base")
    with pytest.raises(InspectionError, match=r"lacking lacks model\.layers\.1\.mlp\.up_proj; are they"):
        inspect_delta(tmp_path / "base", base=lacking)
    other_shape = tuned("other", weights | {key: weights[key][:-1].clone()})
    with pytest.raises(InspectionError, match=r"up_proj is \(48, 32\) in the base and \(47, 32\)"):
        inspect_delta(other_shape, base=tmp_path / "base", **(QUICK | {"layers": None}))
    quantized = tuned("quantized", weights | {key: weights[key].to(torch.int8)})
    with pytest.raises(InspectionError, match=r"up_proj\.weight in .* is torch\.int8; save the model dequantized"):
        inspect_delta(quantized, base=tmp_path / "base", **(QUICK | {"layers": ["*1.mlp.up_proj"]}))
    diverged = tuned("diverged", weights | {key: weights[key] * float("nan")})
    with pytest.raises(ValueError, match=r"1\.mlp\.up_proj holds NaN"):
        inspect_delta(diverged, base=tmp_path / "base", **(QUICK | {"layers": ["*1.mlp.up_proj"]}))
    (lacking / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {key: "gone.safetensors"}}))
    with pytest.raises(InspectionError, match=r"lacks gone\.safetensors"):
        inspect_delta(lacking, base=tmp_path / "base")
    (lacking / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {key: "model.safetensors"}}))
    with pytest.raises(InspectionError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight, which the index"):
        inspect_delta(lacking, base=tmp_path / "base")
    (other_shape / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(InspectionError, match="not a readable safetensors file"):
        inspect_delta(other_shape, base=tmp_path / "base")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["o_proj"]}}, "BD-LoRA is block-diagonal"),
        ({"peft_type": "ADALORA", "r": 8, "total_step": 10}, "adapter of type ADALORA; merge it"),
    ],
)
def test_lora_whose_update_is_not_b_a_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    stock_lora(tmp_path, r=4)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | options))
    with pytest.raises(LocaloraError, match=message):
        inspect_delta(tmp_path)


def test_damaged_lora_is_refused(tmp_path: Path) -> None:
    stock_lora(tmp_path, r=4)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if ".lora_B." in key)
    save_file({name: x for name, x in tensors.items() if name != key}, path)
    with pytest.raises(AdapterError, match="is missing; the adapter file is damaged"):
        inspect_delta(tmp_path)
    save_file({name: x[:3].clone() if "lora_A" in name else x[:, :3].clone() for name, x in tensors.items()}, path)
    with pytest.raises(AdapterError, match="has rank 3, its config says 4"):
        inspect_delta(tmp_path)
    path.unlink()
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        inspect_delta(tmp_path)


def test_what_cannot_be_inspected_says_so(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    with pytest.raises(InspectionError, match="is no folder"):
        inspect_delta(tmp_path / "nowhere")
    with pytest.raises(InspectionError, match="was fine-tuned from with base="):
        inspect_delta(tmp_path)
    with pytest.raises(InspectionError, match="no localora or LoRA adapter called 'default'"):
        inspect_delta(llama)
    with pytest.raises(InspectionError, match="goes with the folder"):
        inspect_delta(llama, base=tmp_path)
    with pytest.raises(InspectionError, match="holds no safetensors"):
        inspect_delta(tmp_path, base=tmp_path)
    with pytest.raises(InspectionError, match="must be a floating-point matrix"):
        inspect_delta({"x": torch.zeros(3)})
    get_peft_model(llama, IA3Config(target_modules=["k_proj"], feedforward_modules=[])).save_pretrained(str(tmp_path))
    with pytest.raises(InspectionError, match="adapter of type IA3"):
        inspect_delta(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "at least 1, got 0"),
        ({"draws": 1}, "at least 2 draws"),
        ({"clusters": (1, 2)}, r"numbers in 2\.\.127, got \(1, 2\)"),
        ({"layers": ["*.v_proj"]}, r"no layer matches '\*\.v_proj'; there are 8, such as"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    get_peft_model(tiny_llama(), BY_NAME["g-lora"].config(target_modules=LLAMA_TARGETS)).save_pretrained(str(tmp_path))
    with pytest.raises(InspectionError, match=message):
        inspect_delta(tmp_path, **options)
    with pytest.raises(InspectionError, match="is the folder to inspect"):
        inspect_delta(tmp_path, out=tmp_path)
