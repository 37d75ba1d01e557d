"""Parameters under DeepSpeed's ZeRO: the optimizer trains a float32 copy, and in stage 3 each process holds a part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """Its shape before stage 3 took it apart."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


@contextmanager
def gathered(parameter: nn.Parameter, *, written: bool = False) -> Iterator[None]:
    """Inside, stage 3 has put the parameter together; `written`: what process 0 writes into it is kept, by all."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if written else None):
        yield


def tell_optimizer(parameter: Any) -> None:
    """Let the float32 copy that is trained be what was written into the parameter."""
    if hasattr(parameter, "_z3_optimizer"):
        from deepspeed.utils import safe_set_local_fp32_param

        safe_set_local_fp32_param(parameter, parameter.ds_tensor.detach())
    elif hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, parameter.detach())
