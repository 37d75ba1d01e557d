"""Which weight matrices of a model an adapter would be put on, and their shapes.

Shape legend
    m   rows of W (outputs)
    n   columns of W (inputs)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from localora.errors import ConfigError


class Target(NamedTuple):
    """One weight matrix: the name of its module, m outputs, n inputs."""

    name: str
    m: int
    n: int


def resolve_targets(model: nn.Module, spec: str | Sequence[str]) -> list[Target]:
    """The matrices that PEFT's `target_modules=spec` adapts, in the model's order, the output head excluded.

    `spec` is "all-linear" or a list of module names (a name matches itself and any `*.name`).

    Raises:
        ValueError: nothing matches, or a listed name matches nothing (the message lists the names there are).
    """
    if isinstance(spec, str) and spec != "all-linear":
        raise ConfigError(f'targets must be "all-linear" or a list of module names, got {spec!r}')
    found = _matrices(model)
    if not found:
        raise ConfigError(f"{type(model).__name__} has no linear layer beside its output head to adapt")
    if isinstance(spec, str):
        return found
    unmatched = [name for name in spec if not any(_matches(target.name, name) for target in found)]
    if unmatched or not spec:
        there = sorted({target.name.rpartition(".")[2] for target in found})
        raise ConfigError(f"no linear layer is named {', '.join(unmatched) or '(empty list)'}; there are {there}")
    return [target for target in found if any(_matches(target.name, name) for name in spec)]


def _matrices(model: nn.Module) -> list[Target]:
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    found = []
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):  # the fields, not the weight: quantized weights are packed
            found.append(Target(name, module.out_features, module.in_features))
        elif isinstance(module, Conv1D):  # GPT-2's layer keeps W transposed, n x m
            found.append(Target(name, module.nf, module.nx))
    return found


def _matches(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def depth_order(name: str) -> list[tuple[int, str]]:
    """The key that sorts layers by depth: layers.9 comes before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
