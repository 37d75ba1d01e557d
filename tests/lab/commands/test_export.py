"""`localora export`: what it prints, the merged model, and the Hub, for which a stand-in is used."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from localora import CpsLoraConfig
from localora.cli import app
from tiny_runs import save_tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model in bfloat16, and an adapter on it whose effect is large."""
    base, adapter = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("adapter")
    save_tiny_model(base)
    AutoModelForCausalLM.from_pretrained(base).bfloat16().save_pretrained(base)
    torch.manual_seed(1)
    config = CpsLoraConfig(
        r=4, clusters=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", placement="random",
        init_weights=False,
    )  # fmt: skip
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(adapter)
    return base, adapter


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(2, 40)[None]).logits.float()


class RefusedError(Exception):
    """What the command said instead."""


def run(adapter: Path, out: Path, **options: Any) -> str:
    given = [[f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in options.items()]
    result = CliRunner().invoke(app, ["export", str(adapter), str(out), *(word for words in given for word in words)])
    if result.exit_code == 2:
        raise RefusedError(result.stderr)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_it_prints_the_report_and_a_command_an_engine(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    printed = run(adapter, tmp_path / "mine", modelfile="llama3.2")
    assert "plain LoRA of rank 8 (exact), 2 layers" in printed
    for line in (
        f"vLLM: vllm serve {base} --enable-lora --max-lora-rank 8 --lora-modules mine={tmp_path}/mine",
        f"SGLang: python -m sglang.launch_server --model-path {base} --enable-lora --lora-paths mine={tmp_path}/mine",
        f"llama.cpp: llama-server -m BASE.gguf --lora {tmp_path}/mine/adapter.gguf",
        f"Ollama: ollama create mine -f {tmp_path}/mine/Modelfile",
    ):
        assert line in printed.splitlines(), line
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "adapter.gguf", "Modelfile", "README.md",
    }  # fmt: skip


def test_merged_is_a_plain_checkpoint_in_the_base_s_precision(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    printed = run(adapter, tmp_path / "mine", merged=True)
    assert f"merged into {base}, in bfloat16 -> {tmp_path}/mine" in printed
    assert f"vllm serve {tmp_path}/mine" in printed
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "mine")
    assert merged.dtype == torch.bfloat16
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = logits(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    )
    effect = (expected - logits(plain)).norm()
    assert (logits(merged.float()) - expected).norm() < 0.05 * effect
    assert not any("localora" in type(module).__module__ for module in merged.modules())
    assert AutoTokenizer.from_pretrained(tmp_path / "mine")("cat").input_ids
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.library_name == "transformers"
    assert "# CPS-LoRA merged into its base model" in card.text
    run(adapter, tmp_path / "mine", overwrite=True)  # one kind of export replaces another
    assert not (tmp_path / "mine" / "config.json").exists()


def test_a_base_model_and_a_trained_adapter_are_not_overwritten(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    for folder in (base, adapter):
        before = {path.name for path in folder.iterdir()}
        with pytest.raises(RefusedError, match=r"holds no earlier export .*would be lost|is the adapter's own folder"):
            run(adapter, folder, overwrite=True)
        assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize("other", [{"gguf": True}, {"rank": 4}, {"modelfile": "llama3.2"}])
def test_options_that_exclude_each_other(folders: tuple[Path, Path], tmp_path: Path, other: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="--merged writes a whole model; leave --rank, --gguf and --modelfile out"):
        run(folders[1], tmp_path / "mine", merged=True, **other)


def test_merging_another_method_is_refused_before_its_base_is_loaded(tmp_path: Path) -> None:
    LoraConfig(base_model_name_or_path="no/such-model").save_pretrained(tmp_path / "lora")
    with pytest.raises(RefusedError, match="lora holds no localora adapter"):
        run(tmp_path / "lora", tmp_path / "mine", merged=True)


def test_merging_a_diverged_adapter(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "localized_local_B" in name).fill_(float("nan"))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(RefusedError, match=r"localized_local_B.* holds NaN or infinite numbers"):
        run(tmp_path / "adapter", tmp_path / "mine", merged=True)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    "config", ["[]", "3", '{"model_type": ["llama"]}', '{"model_type": "llama", "hidden_size": []}']
)
def test_a_base_whose_config_is_none(folders: tuple[Path, Path], tmp_path: Path, config: str) -> None:
    base, adapter = folders
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(config)
    with pytest.raises(RefusedError, match=f"cannot load the model .*{re.escape(str(tmp_path / 'base'))}"):
        run(adapter, tmp_path / "mine", merged=True, base=str(tmp_path / "base"))
    with pytest.raises(RefusedError, match="no config of the base model"):
        run(adapter, tmp_path / "mine", gguf=True, base=str(tmp_path / "base"))
    assert not (tmp_path / "mine").exists()


def test_push(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    class Url(str):
        repo_id = "me/mine"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, exist_ok: Url(f"https://huggingface.co/{name}"))
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda self, repo_id, folder_path: asked.append((repo_id, str(folder_path)))
    )
    printed = run(folders[1], tmp_path / "mine", push="me/mine")
    assert asked == [("me/mine", str(tmp_path / "mine"))]
    assert "pushed to https://huggingface.co/me/mine" in printed

    def refuse(self: HfApi, name: str, exist_ok: bool) -> str:
        raise LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(RefusedError, match=r"(?s)written, but was not pushed to me/x: Token.*`hf upload me/x .*other`"):
        run(folders[1], tmp_path / "other", push="me/x")
    assert (tmp_path / "other" / "adapter_config.json").exists()
