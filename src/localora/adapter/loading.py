"""A saved adapter back on its base model, in one call; and another of the same shape in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel
from torch import nn

from localora.adapter.adapted import adapted_layers
from localora.adapter.adapter_file import read_adapter, read_config
from localora.adapter.config import LocalizedConfig
from localora.adapter.layer_state import Layout
from localora.adapter.saved_layers import PEFT_PREFIX
from localora.arguments import check_model, check_path
from localora.errors import AdapterError, AdapterMissingError, LocaloraError

BASE_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def load(folder_or_hub_id: str | Path, *, is_trainable: bool = False, **base_options: Any) -> PeftModel:
    """The adapter and the base model that its config names.

    Args:
        folder_or_hub_id: where `save_pretrained` or `push_to_hub` left the adapter.
        is_trainable: whether it is to be trained further.
        base_options: given to the base model's `from_pretrained`, such as `dtype` or `device_map`.

    Raises:
        AdapterError: the config names no base model, or the adapter is of another method.
        ConfigError, AdapterFileError: a config or tensors that no adapter has.
    """
    check_path("load", "the folder or Hub id of an adapter", folder_or_hub_id)
    where = str(folder_or_hub_id)
    config = _config_of(where)
    if not isinstance(config, LocalizedConfig):
        raise AdapterError(f"{where} holds an adapter of type {config.peft_type}, not a localora adapter")
    if not config.base_model_name_or_path:
        raise AdapterError(
            f"{where} does not say which base model it belongs to; load that yourself, then "
            "PeftModel.from_pretrained(base, ...)"
        )
    auto = getattr(transformers, BASE_CLASSES.get(str(config.task_type or "CAUSAL_LM"), "AutoModel"))
    base = auto.from_pretrained(config.base_model_name_or_path, **{"revision": config.revision, **base_options})
    return PeftModel.from_pretrained(base, where, is_trainable=is_trainable)


def _config_of(where: str) -> PeftConfig:
    if Path(where).is_dir():
        return read_config(Path(where))
    try:
        config: PeftConfig = PeftConfig.from_pretrained(where)
    except (ValueError, OSError) as error:
        if isinstance(error, LocaloraError):
            raise
        raise AdapterMissingError(
            f"{where!r} is no folder here (relative paths start at {Path.cwd()}), and the Hub gives no adapter of that "
            f"name: {str(error).splitlines()[0]}"
        ) from error
    return config


@torch.no_grad()
def hot_swap(model: nn.Module, folder: str | Path, adapter_name: str = "default") -> None:
    """Put a saved adapter in the place of one of the same shapes: no parameter is made anew, whatever its scale.

    Raises:
        AdapterError: the model has no adapter of that name, it is merged, or the saved one sits on other layers or has
            other shapes; nothing has changed then.
        ConfigError, AdapterFileError, UnplacedAdapterError: the saved adapter is damaged, or was never placed.
    """
    check_model("hot_swap", model)
    check_path("hot_swap", "folder", folder)
    saved = read_adapter(folder)
    saved.check_placed()
    layers = {name.removeprefix(PEFT_PREFIX): layer for name, layer in adapted_layers(model, adapter_name)}
    if not layers:
        raise AdapterError(f"no layer of this model holds a localora adapter named {adapter_name!r}")
    if any(adapter_name in layer.merged_adapters for layer in layers.values()):
        raise AdapterError(
            f"{adapter_name!r} is merged into the base weights, which another adapter could not undo; call "
            "unmerge_adapter() first"
        )
    if layers.keys() != saved.layers.keys():
        other = sorted(layers.keys() ^ saved.layers.keys())
        raise AdapterError(
            f"{folder} cannot take the place of {adapter_name!r}: it sits on other layers, "
            f"such as {', '.join(other[:3])}"
        )
    for name, layer in layers.items():
        if layer.localized_layout[adapter_name].budget != saved.layers[name].budget:
            raise AdapterError(f"{folder} cannot take the place of {adapter_name!r}: {name} has other shapes")
    if saved.others:
        raise AdapterError(f"{folder} has modules_to_save, which are not swapped; load it under another name")
    for name, layer in layers.items():
        own = saved.layers[name]
        layer.unfold(adapter_name)
        for key, parameter in layer.trained(adapter_name).items():
            parameter.copy_(own.tensors[key.removeprefix("localized_").replace(f".{adapter_name}.", ".")])
        partition = own.partition()
        if partition is not None:
            layer.place(adapter_name, partition)
        like = next(iter(layer.trained(adapter_name).values()))
        frozen = [own.tensors.get(key) for key in ("frozen_A", "frozen_B")]
        empty = (like.new_zeros(0, own.budget.n), like.new_zeros(own.budget.m, 0))
        layer.set_frozen(
            adapter_name,
            *(
                factor.to(like.device) if factor is not None else none
                for factor, none in zip(frozen, empty, strict=True)
            ),
        )
        layer.localized_layout[adapter_name] = Layout(own.budget, own.scale)
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if isinstance(config, LocalizedConfig):
        for key in ("alpha", "alpha_pattern", "use_rslora", "consolidated_rank"):
            setattr(config, key, getattr(saved.config, key))
