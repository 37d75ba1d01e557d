"""Several adapters in one batch: each sample names its own, as `adapter_names` of PEFT's LoRA does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from localora.adapter.experts import LocalizedExperts
from localora.adapter.layer import BASE, LocalizedLinear
from localora.errors import AdapterError


@contextmanager
def samples_use(model: nn.Module, adapter_names: Sequence[str], num_beams: int | None = None) -> Iterator[None]:
    """Inside, sample i of a forward pass has adapter `adapter_names[i]`, or none where that is "__base__".

    Raises:
        AdapterError: the model trains, a name that no layer has, adapters on experts, or beams in a model that encodes
            before it decodes.
    """
    if model.training:
        raise AdapterError("adapter_names is for inference; call model.eval() first")
    if any(isinstance(module, LocalizedExperts) for module in model.modules()):
        raise AdapterError(
            "adapter_names cannot be used with adapters on experts (target_parameters), whose tokens come from all "
            "samples at once; use one adapter a batch"
        )
    layers = [module for module in model.modules() if isinstance(module, LocalizedLinear)]
    known = {name for layer in layers for name in layer.localized_layout}
    strangers = sorted(set(adapter_names) - known - {BASE})
    if strangers:
        raise AdapterError(f"adapter_names holds {strangers[0]!r}; the model has {', '.join(sorted(known)) or 'none'}")
    names = list(adapter_names)
    if num_beams is not None and num_beams > 1:
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise AdapterError("adapter_names with beam search is not supported in encoder-decoder models")
        names = [name for name in names for _ in range(num_beams)]

    def give_names(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "adapter_names": names}

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, (LocalizedLinear, AuxiliaryTrainingWrapper)):
                handle = module.register_forward_pre_hook(give_names, with_kwargs=True)
                stack.callback(handle.remove)
        yield
