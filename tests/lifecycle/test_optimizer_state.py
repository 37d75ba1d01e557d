"""What is forgotten of an optimizer, torch's or one like DeepSpeed's ZeRO; with DeepSpeed itself: test_sharded.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from localora.errors import ScheduleError
from localora.lifecycle.optimizer_state import check_forgettable, forget


def stepped() -> tuple[torch.optim.Adam, list[nn.Parameter]]:
    parameters = [nn.Parameter(torch.ones(2, 3)) for _ in range(3)]
    adam = torch.optim.Adam(parameters, lr=0.1)
    sum((index + 1) * parameter.sum() for index, parameter in enumerate(parameters)).backward()
    adam.step()
    return adam, parameters


PARTS = {2: ("bit16_groups", "single_partition_of_fp32_groups"), 3: ("fp16_groups", "fp32_partitioned_groups_flat")}


def zero(groups: list[list[nn.Parameter]], stage: int = 2, **options: Any) -> tuple[Any, list[nn.Parameter]]:
    """One flat tensor a group, which another optimizer trains; in accelerate's wrapper."""
    flats = [nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in group])) for group in groups]
    adam = torch.optim.Adam(flats, lr=0.1)
    sum(flat.sum() for flat in flats).backward()
    adam.step()
    own = SimpleNamespace(optimizer=adam, **dict(zip(PARTS[stage], (groups, flats), strict=True)), **options)
    return SimpleNamespace(optimizer=own), flats


def test_torch_s_optimizers_forget_these_parameters_and_no_other() -> None:
    adam, (first, second, other) = stepped()
    check_forgettable(adam, {"a": first, "b": second})
    forget(adam, [first, second])
    assert set(adam.state) == {other}


@pytest.mark.parametrize("stage", PARTS)
def test_zero_forgets_a_group_as_a_whole_where_it_is(stage: int) -> None:
    _, (first, second, other) = stepped()
    wrapper, (ours, others) = zero([[first, second], [other]], stage)
    check_forgettable(wrapper, {"a": first, "b": second})
    state = wrapper.optimizer.optimizer.state
    kept = dict(state[ours])
    state[ours]["count"] = 3  # some count their steps by a number
    forget(wrapper, [first, second])
    assert state[ours].pop("count") == 0
    assert all(state[ours][key] is value for key, value in kept.items())  # DeepSpeed holds views of them
    assert not any(value.any() for value in state[ours].values())
    assert all(value.any() for value in state[others].values())
    before = ours.detach().clone()
    wrapper.optimizer.optimizer.step()
    torch.testing.assert_close(before - ours, torch.full_like(ours, 0.1))  # a first step of Adam's


def test_what_zero_could_not_forget_is_refused() -> None:
    _, (first, second, other) = stepped()
    mixed, _ = zero([[first, other], [second]])
    with pytest.raises(ScheduleError, match=r"one state for the factors and for other parameters.*group of their own"):
        check_forgettable(mixed, {"a": first, "b": second})
    without, _ = zero([[first], [other]])
    with pytest.raises(ScheduleError, match=r"does not hold the factors of b, .*engine\.optimizer with ZeRO"):
        check_forgettable(without, {"a": first, "b": second})
    swapped, _ = zero([[first, second]], swap_optimizer=True)
    with pytest.raises(ScheduleError, match="NVMe"):
        check_forgettable(swapped, {"a": first, "b": second})
