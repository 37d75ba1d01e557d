"""Counts that need no clock: operations a layer dispatches, and bytes autograd keeps for backward.

Shape legend
    T   tokens      m, n   outputs and inputs of a layer      R   rank of the thin product, R < min(m, n)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
MATMULS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.addmm_, aten.baddbmm_}
NO_PASS = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
NO_PASS |= {aten._unsafe_view, aten._reshape_alias, aten.detach, aten.alias, aten.lift_fresh, aten.is_same_size}


@dataclass
class OperationCounts:
    """What ran.

    Attributes:
        matmuls: matrix products of any size.
        multiply_adds: of those matrix products.
        activation_passes: other operations that read or write a tensor of T x min(m, n) elements or more.
        thin_passes: other operations on tensors of at least T elements, but smaller than activations: thin products.
        factor_passes: the rest, on tensors that do not grow with T.
    """

    matmuls: int = 0
    multiply_adds: int = 0
    activation_passes: int = 0
    thin_passes: int = 0
    factor_passes: int = 0


class OperationCounter(TorchDispatchMode):
    """Counts what is dispatched while active, backward included (on the CPU it runs in the caller's thread).

    The layer must be such that no factor has T elements, or factors would be taken for thin products.
    """

    def __init__(self, tokens: int, narrow: int) -> None:
        super().__init__()
        self.tokens, self.narrow = tokens, narrow
        self.counts = OperationCounts()
        self.names: list[str] = []  # of the activation passes, to see where they come from

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in MATMULS:
            self.counts.matmuls += 1
            self.counts.multiply_adds += _multiply_adds(packet, args)
        elif packet not in NO_PASS and not _is_view(func):
            self._count_pass(func, [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)])
        return result

    def _count_pass(self, func: Any, tensors: list[Tensor]) -> None:
        size = max((tensor.numel() for tensor in tensors), default=0)
        if size >= self.tokens * self.narrow:
            self.counts.activation_passes += 1
            self.names.append(str(func))
        elif size >= self.tokens:
            self.counts.thin_passes += 1
        else:
            self.counts.factor_passes += 1


def _is_view(func: Any) -> bool:
    """An operation that returns its input's memory without writing to it."""
    returns = func._schema.returns
    return any(value.alias_info is not None and not value.alias_info.is_write for value in returns)


def _multiply_adds(packet: Any, args: tuple[Any, ...]) -> int:
    added = packet in {aten.addmm, aten.baddbmm, aten.addmm_, aten.baddbmm_}
    left, right = args[1:3] if added else args[:2]
    return prod(left.shape) * right.shape[-1]


class SavedBytes:
    """Bytes of the distinct storages that autograd saves while `record` runs, parameters and buffers not counted."""

    def __init__(self, excluded: Iterable[Tensor]) -> None:
        self._excluded = {tensor.untyped_storage()._cdata for tensor in excluded}
        self._storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice

    def record(self, forward: Callable[[], Any]) -> int:
        """Run `forward` and return the bytes; its result is dropped."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            forward()
        return sum(storage.nbytes() for storage in self._storages.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._excluded:
            self._storages[storage._cdata] = storage
        return tensor
