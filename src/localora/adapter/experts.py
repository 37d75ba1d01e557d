"""Adapters on experts whose weights are stacked in one parameter: a layer of its own for each expert's matrix.

Shape legend
    E   experts      m, n   outputs and inputs of one      W   the stack (E, m, n); stored (E, n, m) if `is_transposed`
    R   rank of an expert's dense factors      A   (E, R, n), B (E, m, R): those of all experts, dW_e = B_e A_e

An expert is no module that could be called on its tokens: the module that holds the stack routes them by itself, in
one of several implementations. So the stack is what is adapted: for the length of a forward pass, that module sees
W + dW in the place of W. Each expert's adapter is a LocalizedLinear as any other, so it is placed, merged, saved and
exported as any other; only its forward is here, for all experts at once.

One forward pass makes each stack once more, in its own dtype: the memory of a layer's experts, as with PEFT's LoRA.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from localora.adapter.config import LocalizedConfig
from localora.adapter.expert import Expert, InStack, check_whole, is_transposed
from localora.adapter.factors import Factors, scatter
from localora.adapter.layer import LocalizedLinear
from localora.adapter.targets import TargetError
from localora.errors import AdapterError, LayerError


class LocalizedExperts(nn.Module):
    """A module of stacked experts, and beside it, under the name of each adapted stack, a layer for each expert."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.localized_stacks: list[str] = []

    def add_stack(self, parameter: str) -> list[LocalizedLinear]:
        """The layers of a stack's experts, made at the first call."""
        if parameter not in self.localized_stacks:
            self.localized_stacks.append(parameter)
            experts = len(getattr(self.base_layer, parameter))
            layers = [LocalizedLinear(Expert(self.base_layer, parameter, index)) for index in range(experts)]
            for layer in layers:
                layer.quantization_backend = InStack()
            self.add_module(parameter, nn.ModuleList(layers))
        return self.layers_of(parameter)

    def layers_of(self, parameter: str) -> list[LocalizedLinear]:
        """Of each expert, in order."""
        return list(self.get_submodule(parameter).children())  # type: ignore[arg-type]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        stacks = {name: stack for name in self.localized_stacks if (stack := self._adapted_stack(name)) is not None}
        if not stacks:
            return self.base_layer(*args, **kwargs)
        return torch.func.functional_call(self.base_layer, stacks, args, kwargs)

    def _adapted_stack(self, parameter: str) -> Tensor | None:
        """W + dW of a stack, as it is stored; None if nothing is to be added."""
        layers = self.layers_of(parameter)
        acting = [layer.acting_beside() for layer in layers]
        if any(names != acting[0] for names in acting):
            raise AdapterError(f"some experts of {parameter} are merged and others are not; merge all of them, or none")
        adapted: Tensor = getattr(self.base_layer, parameter)
        transposed = is_transposed(self.base_layer)
        with torch.autocast(adapted.device.type, enabled=False):  # the stack keeps its dtype
            for name in acting[0]:
                A, B = factors_of_all(layers, name, adapted.dtype)
                adapted = torch.baddbmm(adapted, *((A.mT, B.mT) if transposed else (B, A)))
        if any(layer.base_layer._forward_hooks for layer in layers):
            adapted = self._shown(layers, adapted.mT if transposed else adapted)
            adapted = adapted if transposed else adapted.mT
        return adapted if acting[0] else None

    @staticmethod
    def _shown(layers: list[LocalizedLinear], adapted_Emn: Tensor) -> Tensor:
        """The same `(E, n, m)`, by way of the experts' base layers, which somebody watches."""
        identity = torch.eye(adapted_Emn.shape[2], dtype=adapted_Emn.dtype, device=adapted_Emn.device)
        matrices = zip(layers, adapted_Emn.unbind(), strict=True)
        return torch.stack([layer.base_layer(identity, matrix) for layer, matrix in matrices])

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base module; PEFT calls this at `unload` and `merge_and_unload`."""
        if merge:
            for parameter in self.localized_stacks:
                for layer in self.layers_of(parameter):
                    layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        return self.base_layer


def factors_of_all(layers: list[LocalizedLinear], name: str, dtype: torch.dtype) -> Factors:
    """A `(E, R, n)` and s B `(E, m, R)` of an adapter on all experts of a stack: what each layer's own
    `factors_beside` are, in as many operations as one of them takes.
    """
    for layer in layers:
        if not layer.localized_verified[name]:
            layer._verify_for_forward(name)
    budget, scale = layers[0].localized_layout[name]  # experts of a stack have one shape
    A, B = [], []
    if budget.global_rank:
        A.append(_stacked(layers, "localized_global_A", name).to(dtype))
        B.append((_stacked(layers, "localized_global_B", name) * scale).to(dtype))
    if budget.local and not any(layer.is_unplaced(name) for layer in layers if not layer.localized_verified[name]):
        packed_A = _stacked(layers, "localized_local_A", name).to(dtype)
        packed_B = (_stacked(layers, "localized_local_B", name) * scale).to(dtype)
        clusters = budget.local.clusters
        A.append(_scattered(layers, "A", name, packed_A.mT, budget.n, clusters).mT)
        B.append(_scattered(layers, "B", name, packed_B, budget.m, clusters))
    if name in layers[0].localized_frozen_A:
        A.append(torch.stack([layer.localized_frozen_A[name] for layer in layers]).to(dtype))
        B.append(torch.stack([layer.localized_frozen_B[name] for layer in layers]).to(dtype))
    if not A:  # unplaced, and all of it local
        like = _stacked(layers, "localized_local_A", name)
        return (
            like.new_zeros(len(layers), 0, budget.n, dtype=dtype),
            like.new_zeros(len(layers), budget.m, 0, dtype=dtype),
        )
    return torch.cat(A, dim=1), torch.cat(B, dim=2)


def _stacked(layers: list[LocalizedLinear], group: str, name: str) -> Tensor:
    return torch.stack([getattr(layer, group)[name].weight for layer in layers])


def _scattered(
    layers: list[LocalizedLinear], side: str, name: str, packed: Tensor, entries: int, clusters: int
) -> Tensor:
    """Packed `(E, n', r)` to `(E, n, K r)`: the experts' entries below each other are the entries of one scatter."""
    labels = "localized_col_labels" if side == "A" else "localized_row_labels"
    each = [
        getattr(layer, f"localized_local_{side}")[name].places(getattr(layer, labels)[name], packed.shape[1], clusters)
        for layer in layers
    ]
    places = None
    if each[0] is not None:
        starts = torch.arange(len(layers), device=packed.device) * entries * clusters
        places = (torch.stack(each) + starts[:, None]).flatten()
    scattered: Tensor = scatter(packed.flatten(0, 1), places, len(layers) * entries, clusters)
    return scattered.view(len(layers), entries, -1)


def stacks_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """The stacked weights of a model's experts: name of the module, the module, name of the parameter, its tensor."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd) or ".localized_" in name:
            continue
        expert_like = hasattr(module, "num_experts") or "expert" in name
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if expert_like and len(getattr(parameter, "ds_shape", parameter.shape)) == 3:
                yield name.removesuffix(".base_layer"), module, parameter_name, parameter


def match_stacks(model: nn.Module, config: LocalizedConfig) -> dict[str, nn.Module]:
    """The stacks that `target_parameters` names, each with the module that holds it, in the order of the model.

    That option is put in the same order: PEFT's LoRA nests the parameters of one module so, and the export must too.
    Raises TargetError for a name that fits no stack, LayerError for a stack that is sharded or quantized.
    """
    stacks = {f"{name}.{parameter}": (module, tensor) for name, module, parameter, tensor in stacks_of(model)}
    targets = config.target_parameters or []
    for target in targets:
        if not any(_fits(key, target) for key in stacks):
            known = ", ".join(sorted({_two_parts(key) for key in stacks}))
            raise TargetError(
                f"target_parameters names {target!r}, which fits no stacked weights of experts; "
                + (f"this model's are called {known}" if stacks else "this model has none")
                + ". Linear layers are named in target_modules"
            )
    found = {key: pair for key, pair in stacks.items() if any(_fits(key, target) for target in targets)}
    for key, (_, tensor) in found.items():
        check_stack(key, tensor)
    order = list(found)
    config.target_parameters = sorted(targets, key=lambda target: [_fits(key, target) for key in order].index(True))
    return {key: module for key, (module, _) in found.items()}


def warn_of_stacks_left_out(model: nn.Module, adapter_name: str) -> None:
    """Say once which experts "all-linear" did not adapt, since their stacked weights are no linear layers."""
    adapted = {
        f"{name}.{parameter}"
        for name, experts in model.named_modules()
        if isinstance(experts, LocalizedExperts)
        for parameter in experts.localized_stacks
        if adapter_name in experts.layers_of(parameter)[0].localized_layout
    }
    left_out = {
        f"{name}.{parameter}": tuple(tensor.shape)
        for name, module, parameter, tensor in stacks_of(model)
        if f"{name}.{parameter}" not in adapted
    }
    if left_out:
        (first, shape), remedy = next(iter(left_out.items())), sorted({_two_parts(key) for key in left_out})
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        warnings.warn(
            f'"all-linear" adapts linear layers, and the stacked weights of this model\'s experts are none: {first} '
            f"({' x '.join(map(str, shape))}){more} are left out. Adapt them with target_parameters={remedy}",
            stacklevel=3,
        )


def _two_parts(key: str) -> str:
    return ".".join(key.rsplit(".", 2)[-2:])


def _fits(key: str, target: str) -> bool:
    return key == target or key.endswith(f".{target}")


def check_stack(name: str, parameter: Tensor) -> None:
    """Raise LayerError for a stack that is sharded, or quantized and so cannot be added to."""
    check_whole(name, parameter)
    if not parameter.is_floating_point() or parameter.element_size() < 2:
        raise LayerError(
            f"{name} is {parameter.dtype}: an adapter on stacked experts adds to their weight in its own dtype, so "
            "they must not be quantized. Load the model dequantized, or leave target_parameters out"
        )
