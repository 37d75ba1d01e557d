"""What each serving engine asks of a folder of plain LoRA, by its own documentation, and the command that serves it.

Every rule names its source, so that a reader can see whether it still holds. We have not run vLLM, SGLang or Ollama;
docs/serving.md says what was run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from localora.adapter.adapter_file import CONFIG, WEIGHTS
from localora.export.folder import ExportError
from localora.export.gguf_file import GGUF

MODELFILE = "Modelfile"
VLLM_HELPER = "vLLM, vllm/lora/peft_helper.py"
VLLM_CONFIG = "vLLM, MaxLoRARanks in vllm/config/lora.py"
SGLANG_CONFIG = "SGLang, python/sglang/srt/lora/lora_config.py"
SGLANG_TOKENS = "SGLang pull request 14105"
LLAMA_CPP = "llama.cpp, src/llama-adapter.cpp"
OLLAMA_IMPORT = "Ollama, docs/import.mdx and convert/convert.go"
# The ranks that vLLM builds kernels for: it refuses any other `--max-lora-rank` but 1, and reserves memory for the one
# it is given. SGLang, llama.cpp and Ollama take any rank.
RANK_GRID = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Engine:
    """What one engine makes of a folder.

    Attributes:
        name: of the engine.
        problems: why it would refuse or misread the folder, each with its remedy and source; empty if it would not.
        command: what serves the folder, for a shell.
    """

    name: str
    problems: tuple[str, ...]
    command: str

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.name}: {self.command}", *(f"    not as it is: {problem}" for problem in self.problems)]
        )


@dataclass(frozen=True)
class _Folder:
    path: Path
    config: dict[str, Any]
    layers: list[str]  # of the tensors, not of target_modules
    base: str


def check_engines(folder: str | Path, base: str | None = None) -> list[Engine]:
    """Hold a folder of plain LoRA, ours or anybody's, against the rules of vLLM, SGLang, llama.cpp and Ollama.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        base: the base model's name in the commands, if not what the config names.

    Raises:
        ExportError: no plain LoRA there.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, "pt") as file:
            keys = list(file.keys())
    except (OSError, ValueError) as error:
        raise ExportError(f"{folder} holds no plain LoRA that can be read: {error}") from error
    if config.get("peft_type") != "LORA":
        raise ExportError(
            f"{folder} holds an adapter of type {config.get('peft_type')}, which no engine serves; export it first"
        )
    layers = sorted({key.partition(".lora_")[0] for key in keys if ".lora_" in key})
    read = _Folder(folder, config, layers, base or config.get("base_model_name_or_path") or "BASE")
    name = folder.resolve().name
    commands = {
        "vLLM": ["vllm", "serve", read.base, "--enable-lora", "--max-lora-rank", str(on_grid(config["r"])),
                 "--lora-modules", f"{name}={folder}"],
        "SGLang": ["python", "-m", "sglang.launch_server", "--model-path", read.base, "--enable-lora",
                   "--lora-paths", f"{name}={folder}"],
        "llama.cpp": ["llama-server", "-m", "BASE.gguf", "--lora", str(folder / GGUF)],
        "Ollama": ["ollama", "create", name, "-f", str(folder / MODELFILE)],
    }  # fmt: skip
    return [Engine(name, tuple(rules(read)), shlex.join(commands[name])) for name, rules in _RULES.items()]


def on_grid(rank: int) -> int:
    """The smallest rank of the grid that holds `rank`; above the grid, `rank` itself."""
    return next((step for step in RANK_GRID if step >= rank), rank)


def write_modelfile(folder: Path, model: str) -> None:
    """Write Ollama's Modelfile, beside the GGUF adapter, for its `model`: a name it knows, or a file or folder."""
    source = str(Path(model).resolve()) if Path(model).exists() else model
    (folder / MODELFILE).write_text(f"FROM {source}\nADAPTER ./{GGUF}\n", encoding="utf-8")


def _vllm(folder: _Folder) -> Iterator[str]:
    r = folder.config["r"]
    if r > RANK_GRID[-1]:
        yield (
            f"rank {r} is above {RANK_GRID[-1]}, the largest --max-lora-rank there is; export with --rank "
            f"{RANK_GRID[-1]} ({VLLM_CONFIG})"
        )
    if folder.config.get("modules_to_save"):
        yield (
            f"modules_to_save {folder.config['modules_to_save']} must be None: they are trained in full, which LoRA "
            f"does not hold; export with --merged ({VLLM_HELPER})"
        )
    if folder.config.get("use_dora"):
        yield f"use_dora is not supported; merge the adapter ({VLLM_HELPER})"
    if folder.config.get("bias", "none") != "none":
        yield f"bias must be 'none', and is {folder.config['bias']!r} ({VLLM_HELPER})"
    yield from _one_scale(folder, VLLM_HELPER)
    heads = [name for name in folder.layers if name.rpartition(".")[2] in ("lm_head", "embed_tokens")]
    if heads:
        yield (
            f"{heads[0].rpartition('.')[2]} is adapted, whose update vLLM leaves out of prompt_logprobs; adapt other "
            "layers, or export with --merged (vLLM issue 51594)"
        )


def _sglang(folder: _Folder) -> Iterator[str]:
    yield from _one_scale(folder, SGLANG_CONFIG)
    if isinstance(folder.config.get("target_modules"), str):
        yield f"target_modules must be a list of names ({SGLANG_CONFIG})"
    if (folder.path / "added_tokens.json").exists():
        yield f"added_tokens.json: adapters that add tokens are refused; remove the file ({SGLANG_TOKENS})"


def _llama_cpp(folder: _Folder) -> Iterator[str]:
    if not (folder.path / GGUF).exists():
        yield f"it reads GGUF files only; export with --gguf ({LLAMA_CPP})"
    if folder.config.get("modules_to_save"):
        yield f"modules_to_save {folder.config['modules_to_save']} are not in the GGUF file; export with --merged"


def _ollama(folder: _Folder) -> Iterator[str]:
    if not (folder.path / MODELFILE).exists():
        yield (
            "it needs a Modelfile; export with --modelfile MODEL. Safetensors adapters it converts itself, for Llama "
            f"and Gemma 2 only, so ours is GGUF ({OLLAMA_IMPORT})"
        )
    if folder.config.get("modules_to_save"):
        yield f"modules_to_save {folder.config['modules_to_save']} are not in the GGUF file; export with --merged"


def _one_scale(folder: _Folder, source: str) -> Iterator[str]:
    """These engines read r and lora_alpha, once, and nothing that differs from layer to layer."""
    for key in ("rank_pattern", "alpha_pattern"):
        if folder.config.get(key):
            yield f"{key} is ignored, so that some layers get a wrong scale; localora's export has none ({source})"


_RULES = {"vLLM": _vllm, "SGLang": _sglang, "llama.cpp": _llama_cpp, "Ollama": _ollama}
