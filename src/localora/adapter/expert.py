"""One expert of a stack, as the base layer of its adapter.

Shape legend
    E   experts      m, n   outputs and inputs of one      W_e   (m, n), the weight of expert e
    stack   (E, m, n); stored (E, n, m) where `is_transposed`
"""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn

from localora.errors import LayerError


class Expert(nn.Module):
    """W_e as a view of the stack, and nothing of its own."""

    def __init__(self, holder: nn.Module, parameter: str, index: int) -> None:
        super().__init__()
        self._holder = (holder,)  # in a tuple, or it would be a part of each of its experts
        self.parameter, self.index = parameter, index
        self.input_size, self.output_size = self.weight.shape[1], self.weight.shape[0]  # as PEFT asks for them

    @property
    def weight(self) -> Tensor:
        """Raises LayerError where the stack has since been sharded over processes."""
        (holder,) = self._holder
        stack: Tensor = getattr(holder, self.parameter)
        check_whole(f"the stack {self.parameter}", stack)
        return stack[self.index].T if is_transposed(holder) else stack[self.index]

    def forward(self, identity: Tensor, adapted_mn: Tensor) -> Tensor:
        """What W_e + dW_e `(m, n)` makes of the identity `(n, n)`: its transpose, whose gradient is G_e^T `(n, m)`.

        So who watches this layer sees the gradient of the expert's matrix as that of a layer with n unit vectors for
        tokens.
        """
        return adapted_mn.T


class InStack(QuantizationBackend):
    """Where PEFT asks for, and writes, the weight of an expert. It is of full precision; only its place is unusual."""

    layer_type = "linear"
    supports_merge = True
    backend_name = "stacked experts"

    def get_base_weight(self, base_layer: nn.Module) -> Tensor:
        assert isinstance(base_layer, Expert)
        return base_layer.weight.detach()

    def set_base_weight(self, peft_layer: Any, weight_data: Tensor) -> None:
        with torch.no_grad():
            peft_layer.get_base_layer().weight.copy_(weight_data)


def is_transposed(holder: nn.Module) -> bool:
    """Whether a module of experts stores each matrix as inputs x outputs, as gpt-oss does."""
    return bool(getattr(holder, "is_transposed", False))


def check_whole(name: str, stack: Tensor) -> None:
    """Raise LayerError where FSDP or ZeRO-3 left this process a part of a stack."""
    if hasattr(stack, "full_tensor") or hasattr(stack, "ds_shape") or stack.ndim != 3:
        raise LayerError(
            f"{name} is sharded over processes (FSDP, ZeRO-3), where adapters on stacked experts are not supported; "
            "train with DDP, or leave target_parameters out"
        )
