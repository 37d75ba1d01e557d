"""Configs of base models by name: shapes known here, a local folder or config.json, or a Hub id (its config only)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from localora.lab.model import ModelError


def _llama(
    hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


BUILT_IN: dict[str, dict[str, Any]] = {
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49152, tied=True),
    "llama-3-1b": _llama(2048, 8192, 16, 32, 8, 128256, tied=True),
    "llama-3-8b": _llama(4096, 14336, 32, 32, 8, 128256, tied=False),
    "llama-3-70b": _llama(8192, 28672, 80, 64, 8, 128256, tied=False),
}


def model_config(name_or_config: str | Path | PretrainedConfig) -> tuple[str, PretrainedConfig]:
    """The name to print and the config of a model.

    Args:
        name_or_config: a name in BUILT_IN, a folder with a config.json or that file, a Hub id, or a config.

    Raises:
        ModelError: nothing of that name, or a config that is none; the message names the built-in shapes.
    """
    if isinstance(name_or_config, PretrainedConfig):
        return name_or_config.name_or_path or name_or_config.model_type, name_or_config
    name = str(name_or_config)
    if name.lower() in BUILT_IN:
        return name.lower(), LlamaConfig(**BUILT_IN[name.lower()])
    path = Path(name).expanduser()
    try:
        return name, AutoConfig.from_pretrained(str(path) if path.exists() else name)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"no model config found for {name!r}: {reason}\nGive a folder with config.json, that file, a Hub id, or "
            f"one of {', '.join(BUILT_IN)}"
        ) from error


def meta_model(name: str, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model of a config with shapes only: every tensor lies on the meta device.

    Raises:
        ModelError: transformers knows no causal language model for this config.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{name!r} is no causal language model: {reason}") from error
