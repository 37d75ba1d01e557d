"""The rules of serving engines: our own export keeps them all; each that is broken is named with its source."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from adapted_models import adapted
from localora import ExportError, export_lora
from localora.export.engines import Engine, check_engines
from method_table import BY_NAME, Method, every_method
from tiny_models import tiny_llama

CONFIG = "adapter_config.json"


def by_name(folder: Path, base: str | None = None) -> dict[str, Engine]:
    return {engine.name: engine for engine in check_engines(folder, base)}


@every_method
def test_our_export_is_taken_by_all(method: Method, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    report = export_lora(adapted(method), out, modelfile="llama3.2:1b")
    engines = by_name(out, base="org/base")
    assert [engine.problems for engine in engines.values()] == [(), (), (), ()]
    assert shlex.split(engines["vLLM"].command) == [
        "vllm", "serve", "org/base", "--enable-lora", "--max-lora-rank", str(report.rank), "--lora-modules",
        f"mine={out}",
    ]  # fmt: skip
    assert f"--lora-paths mine={out}" in engines["SGLang"].command
    assert engines["llama.cpp"].command == f"llama-server -m BASE.gguf --lora {out}/adapter.gguf"
    assert engines["Ollama"].command == f"ollama create mine -f {out}/Modelfile"
    assert (out / "Modelfile").read_text() == "FROM llama3.2:1b\nADAPTER ./adapter.gguf\n"


def test_a_modelfile_for_a_file_gives_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gguf").write_text("")
    export_lora(adapted(BY_NAME["g-lora"]), tmp_path / "mine", modelfile="base.gguf")
    assert (tmp_path / "mine" / "Modelfile").read_text().startswith(f"FROM {tmp_path}/base.gguf\n")


def test_a_folder_without_gguf_says_how_to_get_it(tmp_path: Path) -> None:
    export_lora(adapted(BY_NAME["g-lora"]), tmp_path / "mine")
    engines = by_name(tmp_path / "mine")
    assert engines["vLLM"].problems == engines["SGLang"].problems == ()
    assert "export with --gguf (llama.cpp, src/llama-adapter.cpp)" in engines["llama.cpp"].problems[0]
    assert "export with --modelfile MODEL" in engines["Ollama"].problems[0]
    assert "not as it is: it needs a Modelfile" in str(engines["Ollama"])


@pytest.mark.parametrize(
    ("change", "engine", "problem", "source"),
    [
        ({"r": 520}, "vLLM", "rank 520 is above 512.*--rank 512", "MaxLoRARanks in vllm/config/lora.py"),
        ({"modules_to_save": ["lm_head"]}, "vLLM", "modules_to_save .*must be None.*--merged", "peft_helper.py"),
        ({"modules_to_save": ["lm_head"]}, "llama.cpp", "not in the GGUF file; export with --merged", ""),
        ({"use_dora": True}, "vLLM", "use_dora is not supported", "peft_helper.py"),
        ({"bias": "all"}, "vLLM", "bias must be 'none', and is 'all'", "peft_helper.py"),
        ({"rank_pattern": {"q_proj": 4}}, "vLLM", "rank_pattern is ignored", "peft_helper.py"),
        ({"alpha_pattern": {"q_proj": 4}}, "SGLang", "alpha_pattern is ignored", "lora_config.py"),
        ({"target_modules": ".*q_proj"}, "SGLang", "target_modules must be a list", "lora_config.py"),
    ],
)
def test_each_broken_rule_is_named(
    tmp_path: Path, change: dict[str, Any], engine: str, problem: str, source: str
) -> None:
    get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    before = by_name(tmp_path)[engine].problems
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | change))
    new = [text for text in by_name(tmp_path)[engine].problems if text not in before]
    assert len(new) == 1
    with pytest.raises(ValueError, match=problem):
        raise ValueError(new[0])
    assert source in new[0]


def test_an_adapted_head_and_added_tokens(tmp_path: Path) -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["lm_head"]))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    (tmp_path / "added_tokens.json").write_text("{}")
    engines = by_name(tmp_path)
    assert "lm_head is adapted, whose update vLLM leaves out of prompt_logprobs" in engines["vLLM"].problems[0]
    assert "adapters that add tokens are refused" in engines["SGLang"].problems[0]


def test_what_is_no_plain_lora(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds no plain LoRA that can be read"):
        check_engines(tmp_path)
    adapted(BY_NAME["g-lora"]).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="adapter of type LOCALIZED, which no engine serves; export it first"):
        check_engines(tmp_path)
