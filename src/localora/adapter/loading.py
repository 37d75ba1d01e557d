"""A saved adapter back on its base model, in one call; and another of the same shape in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from torch import nn

from localora.adapter.adapter_file import read_adapter, read_config
from localora.adapter.card import LOADERS
from localora.adapter.config import LocalizedConfig
from localora.adapter.saved_layers import OURS, PEFT_PREFIX
from localora.adapter.state_check import check_layers
from localora.adapter.status import adapter_in
from localora.arguments import check_model, check_path
from localora.errors import AdapterError, AdapterMissingError, LocaloraError


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
    auto = getattr(transformers, LOADERS.get(str(config.task_type or "CAUSAL_LM"), "AutoModel"))
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


def hot_swap(model: nn.Module, folder: str | Path, adapter_name: str = "default") -> None:
    """Put a saved adapter in the place of one of the same shapes: no parameter is made anew, whatever its scale.

    Its clusters may be fewer than those of the one it replaces, of which some are empty then.

    Raises:
        AdapterError: the model has no adapter of that name, it is merged, one of both has modules_to_save, or the saved
            one has more clusters; nothing has changed then.
        ConfigError, AdapterFileError, UnplacedAdapterError: the saved adapter is damaged, sits on other layers, has
            other shapes, or was never placed; nothing has changed then.
    """
    check_model("hot_swap", model)
    check_path("hot_swap", "folder", folder)
    saved = read_adapter(folder)
    saved.check_placed()
    adapter = adapter_in(model, adapter_name)
    config, layers = adapter.config, adapter.layers
    if any(adapter_name in layer.merged_adapters for layer in layers.values()):
        raise AdapterError(
            f"{adapter_name!r} is merged into the base weights, which another adapter could not undo; call "
            "unmerge_adapter() first"
        )
    for where, has_modules in ((folder, saved.others), (f"the adapter {adapter_name!r}", config.modules_to_save)):
        if has_modules:
            raise AdapterError(f"{where} has modules_to_save, which are not swapped; load {folder} under another name")
    clusters, room = (getattr(each, "clusters", 1) for each in (saved.config, config))
    if clusters > room:
        raise AdapterError(f"{folder} has {clusters} clusters, {adapter_name!r} {room}; load it under another name")
    by_layer = {name: layer.tensors for name, layer in saved.layers.items()}
    check_layers(model, saved.config, adapter_name, by_layer)  # before anything changes
    for name, layer in layers.items():
        layer.unfold(adapter_name)
        layer.allocate_frozen(adapter_name, saved.config.consolidated_rank)
        scale = saved.layers[name.removeprefix(PEFT_PREFIX)].scale
        layer.localized_layout[adapter_name] = layer.localized_layout[adapter_name]._replace(scale=scale)
    for key in ("alpha", "alpha_pattern", "use_rslora", "consolidated_rank"):
        setattr(config, key, getattr(saved.config, key))
    state = {f"{PEFT_PREFIX}{name}{OURS}{key}": t for name, own in by_layer.items() for key, t in own.items()}
    set_peft_model_state_dict(model, state, adapter_name)
