"""A saved adapter's tensors against the model they are loaded into: all of this adapter's, none of the base's.

PEFT's loader shows us a file's tensors before it takes them. `model.load_adapter` of transformers makes the adapter's
layers, then puts every tensor whose name it finds in the model there, the base model's among them, and asks nobody:
what it wrote is looked at before the model's first pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from localora.adapter.config import LocalizedConfig
from localora.adapter.layer import LocalizedLinear
from localora.adapter.saved_layers import (
    OURS,
    PEFT_PREFIX,
    AdapterFileError,
    SavedLayer,
    check_contents,
    check_finite,
    check_layer,
    split,
)
from localora.adapter.status import adapted_layers
from localora.errors import listed

OF_THE_BASE = "_localora_base"  # on a tensor: it was here before the adapter
BY_TRANSFORMERS = "_is_hf_initialized"  # on a tensor: their loader put it here


def check_state(model: nn.Module, config: LocalizedConfig, adapter_name: str, state: dict[str, Tensor]) -> None:
    """Raise AdapterFileError unless the tensors, by the keys of an adapter's file, are the whole of this adapter."""
    by_layer, others = split(state)
    in_full = {key.removeprefix(PEFT_PREFIX) for key in keys_saved_in_full(model, adapter_name).values()}
    missing = sorted(in_full - {key.removeprefix(PEFT_PREFIX) for key in others})
    if missing:
        raise AdapterFileError(
            f"the adapter file lacks {missing[0]}, of a module that its config's modules_to_save names; save the "
            "adapter again with save_pretrained"
        )
    strangers = [key for key in others if key.removeprefix(PEFT_PREFIX) not in in_full]
    if strangers:
        raise AdapterFileError(
            f"the adapter file holds {listed(strangers, 3)}, which belongs neither to an adapted layer nor to a module "
            "of modules_to_save: loading it would overwrite the base model"
        )
    check_finite(others)
    note_placed(adapter_name, check_layers(model, config, adapter_name, by_layer))
    config.of_saved_adapter = False  # its file was read: what follows, as a checkpoint, may be after another event
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, FirstUse) and hook.adapter_name == adapter_name:
                hook.handle.remove()


def note_placed(adapter_name: str, placed: Mapping[LocalizedLinear, bool]) -> None:
    """What :func:`check_layers` found of tensors that the layers take or have taken."""
    for layer, is_placed in placed.items():
        layer.localized_verified[adapter_name] = is_placed


def check_layers(
    model: nn.Module, config: LocalizedConfig, adapter_name: str, by_layer: Mapping[str, Mapping[str, Tensor]]
) -> dict[LocalizedLinear, bool]:
    """Whether the labels place each layer, of tensors by layer name and name behind `localized_`.

    Raises:
        AdapterFileError: layers or tensors missing, not expected, or of the wrong shape or dtype; numbers that are not
            finite; labels that are no partition; each by name.
    """
    layers = {name.removeprefix(PEFT_PREFIX): layer for name, layer in adapted_layers(model, adapter_name)}
    missing, strange = layers.keys() - by_layer.keys(), by_layer.keys() - layers.keys()
    if missing:
        raise AdapterFileError(
            f"the adapter file lacks {len(missing)} of the {len(layers)} layers that this model adapts, such as "
            f"{listed(sorted(missing), 3)}; is it the adapter of another model, or of fewer target_modules?"
        )
    if strange:
        raise AdapterFileError(
            f"the adapter file holds {len(strange)} layers that this model does not adapt, such as "
            f"{listed(sorted(strange), 3)}; is it the adapter of another model, or of more target_modules?"
        )
    needed = "this model and config need {}; is it the adapter of another model, or was its config edited?"
    saved = [SavedLayer(name, *layer.localized_layout[adapter_name], by_layer[name]) for name, layer in layers.items()]
    for each in saved:
        check_layer(each.name, each.budget, config.consolidated_rank, each.tensors, needed)
    check_contents(saved)
    return {layers[each.name]: not each.is_unplaced for each in saved}


def keys_saved_in_full(model: nn.Module, adapter_name: str) -> dict[str, str]:
    """Key in an adapter's file -> key in the model, of the modules that are saved in full."""
    return {
        f"{name}.{key}": f"{name}.{in_model}"
        for full_name, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        for name in [full_name.removeprefix("_fsdp_wrapped_module.")]
        for key, in_model in module.adapter_state_dict_load_map(adapter_name).items()
    }


def match_frozen(model: nn.Module, config: LocalizedConfig, adapter_name: str, state: dict[str, Tensor]) -> None:
    """Give the layers a frozen term of the saved rank, for a checkpoint written after an event.

    The config of a saved adapter says that rank already; where the file has another, :func:`check_layers` refuses it.
    """
    layers = [layer for _, layer in adapted_layers(model, adapter_name)]
    for layer in layers:
        layer.unfold(adapter_name)
    saved = next((len(term) for key, term in state.items() if key.endswith(f"{OURS}frozen_A") and term.ndim), 0)
    if saved == config.consolidated_rank or config.of_saved_adapter:
        return
    for layer in layers:
        layer.allocate_frozen(adapter_name, saved)
    config.consolidated_rank = saved


def match_whole_state(
    model: nn.Module, config: LocalizedConfig, adapter_name: str, state: dict[str, Tensor], prefix: str
) -> None:
    """The same for the state of a whole model, whose keys begin with `prefix`: Lightning and accelerate keep that.

    Its base weights hold what was folded into them then, so those factors are taken out of `state` and kept. Nothing
    is done for a state of adapters alone, which :func:`match_frozen` is for.
    """
    own, others = f".{adapter_name}", [key for key in state if OURS not in key and ".modules_to_save." not in key]
    if not others or not any(OURS in key and key.removesuffix(".weight").endswith(own) for key in state):
        return
    for name, layer in adapted_layers(model, adapter_name):
        begin = f"{prefix}{name}{OURS}"
        folded = [state.pop(f"{begin}folded_{side}.{adapter_name}", None) for side in "AB"]
        layer.localized_folded.pop(adapter_name, None)
        A, B = folded
        if A is not None and B is not None:
            layer.localized_folded[adapter_name] = (A.cpu().clone(), B.cpu().clone())
        beside = state.get(f"{begin}frozen_A.{adapter_name}")
        layer.allocate_frozen(adapter_name, 0 if beside is None else len(beside))
        layer.factor_cache.drop()
        config.consolidated_rank = sum(len(term) for term in (A, beside) if term is not None)


def folded_as_frozen(state: dict[str, Tensor], adapter_name: str) -> dict[str, Tensor]:
    """The tensors of a model with what its base weights hold of this adapter named as in a file, where they do not."""
    result = dict(state)
    for side, dim in (("A", 0), ("B", 1)):
        for key in [key for key in state if key.endswith(f"{OURS}folded_{side}.{adapter_name}")]:
            whole = key.replace(f"{OURS}folded_", f"{OURS}frozen_")
            parts = [result.pop(key), *([result[whole]] if whole in result else [])]
            result[whole] = torch.cat([part.to(parts[0]) for part in parts], dim)
    return result


class FirstUse:
    """A forward pre-hook of the model: refuses, by name, what is damaged; gone once an adapter was found sound."""

    def __init__(self, model: nn.Module, config: LocalizedConfig, adapter_name: str) -> None:
        self.config, self.adapter_name = config, adapter_name
        self.handle = model.register_forward_pre_hook(self)
        for tensor in (*model.parameters(), *model.buffers()):
            setattr(tensor, OF_THE_BASE, True)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, model: nn.Module, _: Any) -> None:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            written = getattr(tensor, BY_TRANSFORMERS, False) and not hasattr(tensor, OF_THE_BASE)
            if written and OURS not in name and f".modules_to_save.{self.adapter_name}." not in name:
                raise AdapterFileError(
                    f"loading the adapter {self.adapter_name!r} overwrote {name} of the base model, which its file "
                    "holds: load the base model anew, and this adapter with PeftModel.from_pretrained, which refuses it"
                )
        of_adapter = {
            name.removeprefix(PEFT_PREFIX): {
                ".".join([group.removeprefix("localized_"), *rest]): tensor
                for key, tensor in layer.state_dict().items()
                for group, owner, *rest in [key.split(".")]
                if group.startswith("localized_") and owner == self.adapter_name
            }
            for name, layer in adapted_layers(model, self.adapter_name)
        }
        note_placed(self.adapter_name, check_layers(model, self.config, self.adapter_name, of_adapter))
        self.handle.remove()
