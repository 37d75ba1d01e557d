"""What `localora export` does beside the library's export: merge, publish, say how each engine serves the result."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from peft import PeftModel
from rich.console import Console
from transformers import AutoConfig, PreTrainedModel

from localora import ExportError, export_lora
from localora.adapter.card import training_rows, write_merged_card
from localora.adapter.config import LocalizedConfig
from localora.export.engines import check_engines
from localora.export.folder import check_target, written_whole
from localora.lab.model.adapted import load_adapted
from localora.lab.model.base import source_of
from localora.lab.progress import say


def export(
    adapter: Path,
    out: Path,
    console: Console,
    *,
    rank: int | None = None,
    gguf: bool = False,
    modelfile: str | None = None,
    merged: bool = False,
    push: str | None = None,
    base: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write `out`, print what it is and how to serve it, and publish it as the Hub repository `push`.

    Raises:
        ExportError: as :func:`localora.export_lora`; options that exclude each other; a Hub that does not take it.
        ModelError: with `merged`, a base model that cannot be loaded.
    """
    if merged and (gguf or modelfile or rank):
        raise ExportError("--merged writes a whole model; leave --rank, --gguf and --modelfile out, or --merged")
    if merged:
        lines = [_export_merged(adapter, out, base, overwrite), *_merged_commands(out)]
    else:
        source = None if base is None else source_of(base)
        report = export_lora(adapter, out, rank=rank, gguf=gguf, modelfile=modelfile, base=source, overwrite=overwrite)
        lines = [str(report), *(str(engine) for engine in check_engines(out, base))]
    for line in lines:
        say(console, line)
    if push is not None:
        say(console, f"pushed to {push_folder(out, push)}")


def push_folder(folder: Path, repository: str) -> str:
    """Upload the folder to the Hub, into a repository that is made if it isn't there; return its address."""
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ExportError(
            f"{folder} is written, but was not pushed to {repository}: {reason}\nLog in with `hf auth login`, then "
            f"`hf upload {repository} {folder}`"
        ) from error
    return str(address)


def _export_merged(adapter: Path, out: Path, base: str | None, overwrite: bool) -> str:
    """Add the update in float32 and round once, to the precision that the base model is stored in."""
    check_target(out, overwrite)
    loaded = load_adapted(str(adapter), base)
    if not isinstance(loaded.config, LocalizedConfig):
        raise ExportError(f"{adapter} holds no localora adapter")
    dtype = AutoConfig.from_pretrained(source_of(loaded.base)).dtype or torch.float32
    for name, parameter in loaded.model.named_parameters():
        if not parameter.isfinite().all():
            raise ExportError(f"{name} holds NaN or infinite numbers: export an earlier checkpoint")
    model = cast(PreTrainedModel, cast(PeftModel, loaded.model).merge_and_unload()).to(dtype)  # type: ignore[arg-type]
    with written_whole(out, overwrite) as folder:
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        write_merged_card(folder, loaded.config, training_rows(adapter))
    return f"merged into {loaded.base}, in {str(dtype).removeprefix('torch.')} -> {out}"


def _merged_commands(out: Path) -> list[str]:
    folder = shlex.quote(str(out))
    return [
        f"vLLM: vllm serve {folder}",
        f"SGLang: python -m sglang.launch_server --model-path {folder}",
        f"llama.cpp: python convert_hf_to_gguf.py {folder}",
        f"Ollama: ollama create {shlex.quote(out.resolve().name)} -f Modelfile, with `FROM {out.resolve()}` in it",
    ]
