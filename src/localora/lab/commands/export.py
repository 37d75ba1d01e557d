"""What `localora export` does beside the library's export: merge, and publish."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel

from localora import ExportError
from localora.adapter.adapter_file import CONFIG, is_localized
from localora.adapter.card import training_rows, write_merged_card
from localora.adapter.config import LocalizedConfig
from localora.export.folder import check_target, written_whole
from localora.lab.model.adapted import load_adapted
from localora.lab.model.base import source_of


def push_folder(folder: Path, repository: str) -> str:
    """Upload the folder to the Hub, into a repository that is made if it isn't there; return its address.

    Raises:
        ExportError: the Hub does not take it.
    """
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


def merge(adapter: Path, out: Path, base: str | None, overwrite: bool) -> list[str]:
    """Write the base model with the adapter's update added; return what was done, and how each engine serves it.

    It is added in float32 and rounded once, to the precision that the base model is stored in.

    Raises:
        ExportError: no adapter of ours; a target that may not be replaced.
        ModelError: a base model that cannot be loaded.
    """
    check_target(out, overwrite)
    if (adapter / CONFIG).is_file() and not is_localized(adapter):  # before a base model is loaded for nothing
        raise ExportError(f"{adapter} holds no localora adapter")
    loaded = load_adapted(str(adapter), base)
    if not isinstance(loaded.config, LocalizedConfig):
        raise ExportError(f"{adapter} holds no adapter")
    dtype = AutoConfig.from_pretrained(source_of(loaded.base)).dtype or torch.float32
    for name, parameter in loaded.model.named_parameters():
        if not parameter.isfinite().all():
            raise ExportError(f"{name} holds NaN or infinite numbers: export an earlier checkpoint")
    model = cast(PreTrainedModel, cast(PeftModel, loaded.model).merge_and_unload()).to(dtype)  # type: ignore[arg-type]
    with written_whole(out, overwrite) as folder:
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        write_merged_card(folder, loaded.config, training_rows(adapter))
    where = shlex.quote(str(out))
    return [
        f"merged into {loaded.base}, in {str(dtype).removeprefix('torch.')} -> {out}",
        f"vLLM: vllm serve {where}",
        f"SGLang: python -m sglang.launch_server --model-path {where}",
        f"llama.cpp: python convert_hf_to_gguf.py {where}",
        f"Ollama: ollama create {shlex.quote(out.resolve().name)} -f Modelfile, with `FROM {out.resolve()}` in it",
    ]
