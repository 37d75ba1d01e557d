"""What an optimizer keeps of each parameter it trains, and how it forgets some of them.

torch's optimizers keep it by parameter, make it at a parameter's first step, and so start anew where there is none.
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
    flat = _flat_groups(optimizer)
    if flat is None and not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
        raise ScheduleError(
            f"{type(optimizer).__name__} has no param_groups and state as torch's optimizers do, so an event could not "
            "drop the state of the factors; give Repartitioner the optimizer itself"
        )
    ours = {id(parameter) for parameter in factors.values()}
    held = {
        id(parameter)
        for group in (optimizer.param_groups if flat is None else [{"params": params} for params, _ in flat])
        for parameter in group["params"]
    }
    for name, parameter in factors.items():
        if parameter.requires_grad and id(parameter) not in held:
            raise ScheduleError(
                f"the optimizer does not hold the factors of {name}, so an event could not drop their state. Give "
                "Repartitioner the optimizer that trains them; of DeepSpeed, engine.optimizer with ZeRO of stage 1 to 3"
            )
    for params, _ in flat or ():
        if not {id(parameter) for parameter in params} - ours:
            continue
        if ours & {id(parameter) for parameter in params}:
            raise ScheduleError(
                "DeepSpeed's optimizer keeps one state for the factors and for other parameters, so an event could not "
                "drop that of the factors alone. Put the others, such as modules_to_save, into a parameter group of "
                "their own, or train without events (repartition=[], repartition_every=0)"
            )
    if getattr(_zero(optimizer), "swap_optimizer", False):
        raise ScheduleError("events cannot drop state that DeepSpeed keeps on NVMe; offload it to the CPU instead")


def forget(optimizer: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Let training of these parameters start anew."""
    flat = _flat_groups(optimizer)
    if flat is None:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)
        return
    ours = {id(parameter) for parameter in parameters}
    state = _zero(optimizer).optimizer.state
    for params, trained in flat:
        if ours & {id(parameter) for parameter in params}:
            own = state.get(trained, {})
            for key, value in own.items():
                if isinstance(value, Tensor):
                    value.zero_()  # DeepSpeed keeps views of it
                else:
                    own[key] = type(value)()


def _zero(optimizer: Any) -> Any | None:
    """DeepSpeed's ZeRO optimizer, out of accelerate's wrapper."""
    while optimizer is not None:
        if hasattr(optimizer, "single_partition_of_fp32_groups") or hasattr(optimizer, "fp32_partitioned_groups_flat"):
            return optimizer
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def _flat_groups(optimizer: Any) -> list[tuple[list[nn.Parameter], Tensor]] | None:
    """Of ZeRO, what each of its flat tensors stands for; None of any other optimizer."""
    zero = _zero(optimizer)
    if zero is None:
        return None
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return list(zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True))
    return list(zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True))
