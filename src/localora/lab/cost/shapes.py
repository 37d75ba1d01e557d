"""Models of shapes only, from a name, a folder, a config.json or a Hub id (its config only), and adapters on them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from localora.adapter.config import LocalizedConfig
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


def adapted_shapes(base: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """A copy of `base`, of shapes only, with the adapter that `config` describes: PEFT makes it, nothing is computed.

    Raises:
        ValueError: the adapter does not fit the model.
    """
    config = copy.deepcopy(config)  # initial values need weights, and labels cannot be drawn here; shapes need neither
    if isinstance(config, LocalizedConfig):
        config.placement = "calibrate"
    elif isinstance(config, LoraConfig):
        config.init_lora_weights = True
    model = get_peft_model(copy.deepcopy(base), config, low_cpu_mem_usage=True)
    assert isinstance(model, PeftModel)
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:  # AdaLoRA's note of a layer's rank, which PEFT forgets to freeze on the meta device
            parameter.requires_grad_(False)
    return model
