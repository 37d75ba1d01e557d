"""What an optimizer keeps of each parameter it trains, and how it forgets some of them.

torch's optimizers keep it by parameter, and those tried make it at a parameter's first step, so they start anew where
there is none.
DeepSpeed's ZeRO trains one flat tensor for many parameters, whose state is one, too: it can be forgotten as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from localora.errors import ScheduleError


def check_forgettable(optimizer: Any, factors: dict[str, nn.Parameter]) -> None:
    """Refuse an optimizer that could not forget these parameters, by their names, and them alone.

    Raises:
        ScheduleError: it has no `param_groups` and `state` as torch's have, it does not hold one of them, or it holds
            others in one state with them.
    """
    zero = _zero(optimizer)
    if zero is None and not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
        raise ScheduleError(
            f"{type(optimizer).__name__} has no param_groups and state as torch's optimizers do, so an event could not "
            "drop the state of the factors; give Repartitioner the optimizer itself"
        )
    groups = (
        [group["params"] for group in optimizer.param_groups] if zero is None else [params for params, _ in _flat(zero)]
    )
    held = [{id(parameter) for parameter in group} for group in groups]
    for name, parameter in factors.items():
        if parameter.requires_grad and not any(id(parameter) in group for group in held):
            raise ScheduleError(
                f"the optimizer does not hold the factors of {name}, so an event could not drop their state. Give "
                "Repartitioner the optimizer that trains them; of DeepSpeed, engine.optimizer with ZeRO of stage 1 to 3"
            )
    if zero is None:
        return
    ours = {id(parameter) for parameter in factors.values()}
    if any(group & ours and group - ours for group in held):
        raise ScheduleError(
            "DeepSpeed's optimizer keeps one state for the factors and for other parameters, so an event could not "
            "drop that of the factors alone. Put the others, such as modules_to_save, into a parameter group of "
            "their own, or train without events (repartition=[], repartition_every=0)"
        )
    if getattr(zero, "swap_optimizer", False):
        raise ScheduleError("events cannot drop state that DeepSpeed keeps on NVMe; offload it to the CPU instead")


def forget(optimizer: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Let training of these parameters start anew."""
    zero = _zero(optimizer)
    if zero is None:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)
        return
    ours = {id(parameter) for parameter in parameters}
    for group, trained in _flat(zero):
        state = zero.optimizer.state.get(trained, {})
        for key, value in state.items() if any(id(parameter) in ours for parameter in group) else ():
            if isinstance(value, Tensor):
                value.zero_()  # DeepSpeed keeps views of it
            else:
                state[key] = type(value)()


def _zero(optimizer: Any) -> Any | None:
    """DeepSpeed's ZeRO optimizer, out of accelerate's wrapper; None of any other."""
    while optimizer is not None:
        if hasattr(optimizer, "single_partition_of_fp32_groups") or hasattr(optimizer, "fp32_partitioned_groups_flat"):
            return optimizer
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def _flat(zero: Any) -> list[tuple[list[nn.Parameter], Tensor]]:
    """The parameters of a model that each of its flat tensors stands for, and that tensor: of stage 3, and 1 or 2."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return list(zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True))
    return list(zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True))
