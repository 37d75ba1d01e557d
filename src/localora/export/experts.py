"""Updates of stacked experts, as PEFT's LoRA stores them with `target_parameters`: one pair of matrices a stack.

Shape legend
    E   experts      r   the file's rank      A_e   (r, n), B_e   (m, r): factors of expert e
    lora_A   (E r, n): A_0, A_1, ... below each other      lora_B   (m, r E): column k E + e is column k of B_e

PEFT wraps a module once for each of its adapted parameters, in their order in the module, the first innermost; a stack
is told from the others by how deep it lies, and its name is nowhere in the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from localora.adapter.config import LocalizedConfig

Pairs = Mapping[str, tuple[Tensor, Tensor]]  # layer name -> A (r, n) and B (m, r)


def linear_layers(config: LocalizedConfig, names: Pairs) -> list[str]:
    """The names that are no expert's."""
    return [name for name in names if config.stack_of(name) is None]


def expert_tensors(config: LocalizedConfig, padded: Pairs) -> dict[str, Tensor]:
    """All stacks of the experts among the layers, by the keys of PEFT's file behind its prefix."""
    stacks: dict[str, dict[int, tuple[Tensor, Tensor]]] = defaultdict(dict)
    for name, pair in padded.items():
        found = config.stack_of(name)
        if found is not None:
            stacks[found[0]][found[1]] = pair
    tensors = {}
    for stack, experts in stacks.items():
        where = _place(config, stack, list(stacks))
        pairs = [experts[index] for index in range(len(experts))]
        tensors[f"{where}.lora_A.weight"] = torch.cat([A for A, _ in pairs]).contiguous()
        tensors[f"{where}.lora_B.weight"] = torch.stack([B for _, B in pairs], dim=2).flatten(1).contiguous()
    return tensors


def factors_in_file(
    config: LocalizedConfig, written: Mapping[str, Tensor], name: str, names: Pairs
) -> tuple[Tensor, Tensor]:
    """A `(r, n)` and B `(m, r)` of the layer called `name`, read back from PEFT's keys behind its prefix."""
    found = config.stack_of(name)
    if found is None:
        return written[f"{name}.lora_A.weight"], written[f"{name}.lora_B.weight"]
    stack, index = found
    of_all = [each for each in map(config.stack_of, names) if each is not None]
    experts = sum(other == stack for other, _ in of_all)
    where = _place(config, stack, list(dict.fromkeys(other for other, _ in of_all)))
    A, B = written[f"{where}.lora_A.weight"], written[f"{where}.lora_B.weight"]
    return A.unflatten(0, (experts, -1))[index], B.unflatten(1, (-1, experts))[:, :, index]


def _place(config: LocalizedConfig, stack: str, stacks: list[str]) -> str:
    """Where PEFT's wrapper of a stack lies: the later ones of its module lie around it."""
    module = stack.rpartition(".")[0]
    order = [
        other
        for target in config.target_parameters or ()  # in the order of the module's parameters since injection
        for other in stacks
        if other.rpartition(".")[0] == module and f".{other}".endswith(f".{target}")
    ]
    around = len(set(order)) - 1 - list(dict.fromkeys(order)).index(stack)
    return ".".join([module, *["base_layer"] * around])
