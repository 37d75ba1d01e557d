"""A saved adapter's tensors against the model they are to be loaded into: all of this adapter's, none of the base's."""

from __future__ import annotations

from collections.abc import Iterable

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from localora.adapter.adapted import adapted_layers
from localora.adapter.config import LocalizedConfig
from localora.adapter.first_use import settled
from localora.adapter.saved_layers import (
    PEFT_PREFIX,
    AdapterFileError,
    SavedLayer,
    check_contents,
    check_finite,
    check_layer,
    split,
)


def check_state(model: nn.Module, config: LocalizedConfig, adapter_name: str, state: dict[str, Tensor]) -> None:
    """Refuse tensors, by the keys of an adapter's file, that are not the whole of this adapter of this model.

    Raises:
        AdapterFileError: layers or tensors missing, not expected, or of the wrong shape or dtype; labels that are no
            partition; each by name.
    """
    by_layer, others = split(state)
    check_saved_in_full(model, adapter_name, others)
    layers = {name.removeprefix(PEFT_PREFIX): layer for name, layer in adapted_layers(model, adapter_name)}
    missing, strange = layers.keys() - by_layer.keys(), by_layer.keys() - layers.keys()
    if missing:
        raise AdapterFileError(
            f"the adapter file lacks {len(missing)} of the {len(layers)} layers that this model adapts, such as "
            f"{', '.join(sorted(missing)[:3])}; is it the adapter of another model, or of fewer target_modules?"
        )
    if strange:
        raise AdapterFileError(
            f"the adapter file holds {len(strange)} layers that this model does not adapt, such as "
            f"{', '.join(sorted(strange)[:3])}; is it the adapter of another model, or of more target_modules?"
        )
    saved = []
    for name, layer in layers.items():
        budget, scale = layer.localized_layout[adapter_name]
        check_layer(
            name,
            budget,
            config.consolidated_rank,
            by_layer[name],
            "this model and config need {}; is it the adapter of another model, or was its config edited?",
        )
        saved.append(SavedLayer(name, budget, scale, by_layer[name]))
    check_finite(state)
    check_contents(saved)
    for each in saved:
        layers[each.name].localized_verified[adapter_name] = not each.is_unplaced
    settled(model, adapter_name)


def check_saved_in_full(model: nn.Module, adapter_name: str, others: Iterable[str]) -> None:
    """Refuse keys that would be written anywhere but into this adapter's own copy of a module in `modules_to_save`.

    And a file that lacks a tensor of such a copy.

    Raises:
        AdapterFileError: names them.
    """
    allowed = {
        f"{name.removeprefix('_fsdp_wrapped_module.')}.{key}".removeprefix(PEFT_PREFIX)
        for name, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        for key in module.adapter_state_dict_load_map(adapter_name).values()
    }
    others = list(others)
    missing = sorted(allowed - {key.removeprefix(PEFT_PREFIX) for key in others})
    if missing:
        raise AdapterFileError(
            f"the adapter file lacks {missing[0]}, of a module that its config's modules_to_save names; save the "
            "adapter again with save_pretrained"
        )
    strangers = [key for key in others if key.removeprefix(PEFT_PREFIX) not in allowed]
    if strangers:
        raise AdapterFileError(
            f"the adapter file holds {', '.join(strangers[:3])}, which belongs neither to an adapted layer nor to a "
            "module of modules_to_save: loading it would overwrite the base model"
        )


def match_frozen(model: nn.Module, config: LocalizedConfig, adapter_name: str, state: dict[str, Tensor]) -> None:
    """Give the layers a frozen term of the saved rank, for a checkpoint written after an event.

    Raises:
        AdapterFileError: the file's layers differ in that rank, or its config says another one.
    """
    for _, layer in adapted_layers(model, adapter_name):
        layer.unfold(adapter_name)
    terms = {key: tensor for key, tensor in state.items() if key.endswith(".localized_frozen_A")}
    for key, tensor in terms.items():
        if tensor.ndim != 2:
            raise AdapterFileError(f"{key} has shape {tuple(tensor.shape)} in the adapter file, not two dimensions")
    ranks = {tensor.shape[0] for tensor in terms.values()} or {0}
    if len(ranks) > 1:
        raise AdapterFileError(f"the adapter file is damaged: its frozen terms have different ranks, {sorted(ranks)}")
    (saved,) = ranks
    if saved == config.consolidated_rank:
        return
    if config.of_saved_adapter:
        raise AdapterFileError(
            f"the adapter file holds frozen terms of rank {saved}, but its config says consolidated_rank="
            f"{config.consolidated_rank}; load the complete folder, as save_pretrained wrote it"
        )
    for _, layer in adapted_layers(model, adapter_name):
        layer.allocate_frozen(adapter_name, saved)
    config.consolidated_rank = saved
