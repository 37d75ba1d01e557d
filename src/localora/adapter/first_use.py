"""What transformers' own loader wrote is looked at before the model's first pass: it asks us nothing while it loads.

PEFT's loader shows us a file's tensors before it takes them. `model.load_adapter` of transformers makes the adapter's
layers, then puts every tensor whose name it finds in the model there, the base model's among them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from localora.adapter.layer import LocalizedLinear
from localora.adapter.saved_layers import (
    PEFT_PREFIX,
    AdapterFileError,
    SavedLayer,
    check_contents,
    check_finite,
    check_layer,
)

OF_THE_BASE = "_localora_base"  # on a tensor: it was here before the adapter
BY_TRANSFORMERS = "_is_hf_initialized"  # on a tensor: their loader put it here


class FirstUse:
    """A forward pre-hook of the model: refuses, by name, what is damaged; silent once an adapter was found sound."""

    def __init__(self, model: nn.Module, adapter_name: str) -> None:
        self.adapter_name = adapter_name
        self.done = False
        for tensor in (*model.parameters(), *model.buffers()):
            setattr(tensor, OF_THE_BASE, True)

    @torch.compiler.disable
    def __call__(self, model: nn.Module, _: Any) -> None:
        if self.done:
            return
        layers = {
            name.removeprefix(PEFT_PREFIX): module
            for name, module in model.named_modules()
            if isinstance(module, LocalizedLinear) and self.adapter_name in module.localized_layout
        }
        self._check(model, layers)
        self.done = True

    def _check(self, model: nn.Module, layers: dict[str, LocalizedLinear]) -> None:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            written = getattr(tensor, BY_TRANSFORMERS, False) and not hasattr(tensor, OF_THE_BASE)
            if written and not _of_adapter(name, self.adapter_name):
                raise AdapterFileError(
                    f"loading the adapter {self.adapter_name!r} overwrote {name} of the base model, which its file "
                    "holds: load the base model anew, and this adapter with PeftModel.from_pretrained, which refuses it"
                )
        saved = []
        for name, layer in layers.items():
            tensors = {
                ".".join([group.removeprefix("localized_"), *rest]): tensor
                for key, tensor in layer.state_dict().items()
                for group, owner, *rest in [key.split(".")]
                if group.startswith("localized_") and owner == self.adapter_name
            }
            budget, _ = layer.localized_layout[self.adapter_name]
            frozen_rank = len(tensors.get("frozen_A", ()))
            check_layer(name, budget, frozen_rank, tensors, "this model and config need {}")
            check_finite({f"{name}.localized_{key}": tensor for key, tensor in tensors.items()})
            saved.append(SavedLayer(name, *layer.localized_layout[self.adapter_name], tensors))
        check_contents(saved)


def settled(model: nn.Module, adapter_name: str) -> None:
    """A loader has shown us the adapter's tensors before it took them, so nothing is left to be looked at."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, FirstUse) and hook.adapter_name == adapter_name:
                hook.done = True


def _of_adapter(name: str, adapter_name: str) -> bool:
    return ".localized_" in name or f".modules_to_save.{adapter_name}." in name
