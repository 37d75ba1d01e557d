"""Adapters and checkpoints that diverged, are damaged, or point out of their folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from localora import CpsLoraConfig
from localora.errors import LocaloraError
from localora.lab.inspect import InspectionError
from localora.lab.inspect.microscope import inspect_delta
from localora.lab.inspect.page import write_report


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["lora", "localora"])
def test_an_adapter_that_diverged(llama: LlamaForCausalLM, tmp_path: Path, kind: str, value: float) -> None:
    common: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"], "init_weights": False}
    if kind == "lora":
        config: Any = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    else:
        config = CpsLoraConfig(clusters=2, placement="random", **common)
    get_peft_model(llama, config).save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key, tensor in tensors.items() if tensor.is_floating_point())
    tensors[key].view(-1)[0] = value
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(LocaloraError, match=r"NaN or infinit|not finite"):
        inspect_delta(tmp_path / "a", draws=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_checkpoint_that_diverged(tmp_path: Path, value: float) -> None:
    weights = {"q_proj.weight": torch.randn(12, 8)}
    _checkpoint(tmp_path / "base", weights)
    weights["q_proj.weight"][3, 3] = value
    _checkpoint(tmp_path / "tuned", weights)
    with pytest.raises(InspectionError, match="the update of q_proj holds NaN or infinity"):
        inspect_delta(tmp_path / "tuned", base=tmp_path / "base", draws=2)


def test_a_tensor_s_name_is_no_markup(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    _checkpoint(tmp_path / "base", {f"{name}.weight": torch.zeros(8, 8)})
    _checkpoint(tmp_path / "tuned", {f"{name}.weight": torch.randn(8, 8)})
    write_report(inspect_delta(tmp_path / "tuned", base=tmp_path / "base", draws=2), tmp_path / "out")
    assert "<script>alert" not in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "is no index of safetensors"),
        ("[]", "is no index of safetensors"),
        ('{"weight_map": []}', "is no index of safetensors"),
        ('{"weight_map": {"q.weight": 3}}', "no safetensors file of its own folder"),
        ('{"weight_map": {"q.weight": "../base/model.safetensors"}}', "no safetensors file of its own folder"),
        ('{"weight_map": {"q.weight": "/etc/passwd"}}', "no safetensors file of its own folder"),
        ('{"weight_map": {"q.weight": ".."}}', "no safetensors file of its own folder"),
        ("[" * 100_000, "is no index of safetensors"),
        (b"\xff\xfe\x00", "is no index of safetensors"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, index: str | bytes, said: str) -> None:
    for name in ("base", "tuned"):
        _checkpoint(tmp_path / name, {"q.weight": torch.randn(4, 4)})
    data = index if isinstance(index, bytes) else index.encode()
    (tmp_path / "tuned" / "model.safetensors.index.json").write_bytes(data)
    with pytest.raises(InspectionError, match=said):
        inspect_delta(tmp_path / "tuned", base=tmp_path / "base", draws=2)


def test_an_index_of_its_own_folder_is_read(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        _checkpoint(tmp_path / name, {"q.weight": torch.randn(8, 8)})
        index = {"weight_map": {"q.weight": "model.safetensors"}}
        (tmp_path / name / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [layer.name for layer in inspect_delta(tmp_path / "tuned", base=tmp_path / "base", draws=2).layers] == ["q"]


def _checkpoint(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")
