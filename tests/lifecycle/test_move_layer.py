"""One layer moves under a live optimizer: what stays is untouched to the last bit, what moves starts afresh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from moving import MOVING, adapted_mlp, factors, first_layer, partition, swapped, train, trainable
from torch import nn

from localora import Partition, PlacementError, UnplacedAdapterError
from localora.lifecycle.repartition import STILL, move_layer

Build = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Build] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=False),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
}
every_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in optimizer.state[parameter].items() if value.ndim}


@every_optimizer
@pytest.mark.parametrize("method", MOVING)
def test_moving_to_the_same_labels_changes_nothing_at_all(method: str, build: Build) -> None:
    runs = []
    for move in (False, True):
        model = adapted_mlp(method)
        optimizer = build(trainable(model))
        losses = train(model, optimizer, 3)
        if move:
            layer, old = first_layer(model), partition(first_layer(model))
            numbers = torch.tensor([*reversed(range(old.clusters)), -1])  # another numbering, the same clusters
            same = Partition.from_labels(numbers[old.row_labels.long()], numbers[old.col_labels.long()], old.clusters)
            assert move_layer(layer, "default", same, optimizer) is STILL
        losses += train(model, optimizer, 3, first=3)
        runs.append((losses, list(model.state_dict().values()), optimizer.state_dict()["state"]))
    (losses, tensors, states), (moved_losses, moved_tensors, moved_states) = runs
    assert losses == moved_losses
    assert all(torch.equal(a, b) for a, b in zip(tensors, moved_tensors, strict=True))
    for number, state in states.items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(moved_states[number][key]))


@pytest.mark.parametrize("method", MOVING)
def test_parameters_stay_the_same_objects(method: str) -> None:
    model = adapted_mlp(method)
    optimizer = torch.optim.AdamW(trainable(model))
    train(model, optimizer, 1)
    layer = first_layer(model)
    before = [(id(p), p.data_ptr(), p.shape) for p in trainable(model)]
    buffers = [(id(b), b.data_ptr()) for b in layer.buffers()]
    values = [p.clone() for p in factors(layer)]
    move = move_layer(layer, "default", swapped(partition(layer), 4, 2), optimizer)
    assert (move.rows, move.cols) == (4, 2)
    assert [(id(p), p.data_ptr(), p.shape) for p in trainable(model)] == before
    assert [(id(b), b.data_ptr()) for b in layer.buffers()] == buffers
    assert not any(torch.equal(p, value) for p, value in zip(factors(layer), values, strict=True))


@every_optimizer
@pytest.mark.parametrize("method", MOVING)
def test_moments_follow_their_rows_and_columns(method: str, build: Build) -> None:
    """With uncovered rows (G-LoRA) a factor is packed, so what stays changes its place in the tensor."""
    model = adapted_mlp(method)
    optimizer = build(trainable(model))
    train(model, optimizer, 3)
    layer, old = first_layer(model), partition(first_layer(model))
    new = swapped(old, 6, 4)
    A, B = factors(layer)
    before = [moments(optimizer, A), moments(optimizer, B)]
    steps = [state["step"].clone() for state in optimizer.state.values() if "step" in state]
    assert move_layer(layer, "default", new, optimizer).state == "kept"
    sides = ((A, before[0], old.col_labels, new.col_labels, 1), (B, before[1], old.row_labels, new.row_labels, 0))
    for parameter, old_moments, old_labels, new_labels, dim in sides:
        place_before = {index: place for place, index in enumerate((old_labels >= 0).nonzero().flatten().tolist())}
        stayed = [i for i, (a, b) in enumerate(zip(old_labels.tolist(), new_labels.tolist(), strict=True)) if a == b]
        stayed = [i for i in stayed if new_labels[i] >= 0]
        assert stayed
        for key, value in old_moments.items():
            kept = {i: value.select(dim, place_before[i]) for i in stayed}
            fresh = torch.cat(list(kept.values())).mean() if key in ("exp_avg_sq", "square_avg") else torch.zeros(())
            assert bool((fresh > 0) == (key in ("exp_avg_sq", "square_avg")))
            for place, i in enumerate((new_labels >= 0).nonzero().flatten().tolist()):
                now = optimizer.state[parameter][key].select(dim, place)
                if i in kept:
                    assert torch.equal(now, kept[i])
                else:
                    torch.testing.assert_close(now, fresh.expand_as(now))
    now_steps = [state["step"] for state in optimizer.state.values() if "step" in state]
    assert all(torch.equal(a, b) for a, b in zip(steps, now_steps, strict=True))
    train(model, optimizer, 2, first=3)  # and the optimizer goes on with what it finds


def test_a_moved_row_makes_no_leap_in_its_first_steps() -> None:
    """Adam's step count belongs to the whole tensor: from a zero second moment, 1000 steps in, a row would leap."""
    model = adapted_mlp("cps-lora")
    layer = first_layer(model)
    optimizer = torch.optim.Adam(trainable(model), lr=1e-3, betas=(0.9, 0.999))
    train(model, optimizer, 1)
    _, B = factors(layer)
    optimizer.state[B]["step"].fill_(1000)
    optimizer.state[B]["exp_avg_sq"].fill_(1e-4)
    optimizer.state[B]["exp_avg"].fill_(0)
    move_layer(layer, "default", swapped(partition(layer), 4, 0), optimizer)
    before = B.detach().clone()
    B.grad = torch.full_like(B, 1e-2)  # gradients as large as the second moment says
    optimizer.step()
    expected = 1e-3 * 0.1 * (1 - 0.999**1001) ** 0.5  # lr, 1 - beta_1, bias correction
    torch.testing.assert_close(before - B.detach(), torch.full_like(B, expected), rtol=0.02, atol=0)


def test_moments_in_blocks_of_8_bits_are_dropped_and_that_is_said() -> None:
    model = adapted_mlp("cps-lora")
    optimizer = torch.optim.AdamW(trainable(model))
    train(model, optimizer, 1)
    layer = first_layer(model)
    A, B = factors(layer)
    kept = optimizer.state[A]["exp_avg"].clone()
    optimizer.state[B] = {
        "step": 3,
        "state1": torch.zeros(B.shape, dtype=torch.uint8),
        "state2": torch.zeros(B.shape, dtype=torch.uint8),
        "absmax1": torch.ones(1),
        "qmap1": torch.ones(256),
    }
    move = move_layer(layer, "default", swapped(partition(layer), 4, 2), optimizer)
    assert move.state == "cleared"
    assert optimizer.state[B] == {}  # what 8-bit and paged optimizers initialise anew
    old_cols = (optimizer.state[A]["exp_avg"] == kept).all(0)
    assert int(old_cols.sum()) == 20 - 2


def test_small_tensors_of_an_8_bit_optimizer_are_plain_moments() -> None:
    """bitsandbytes keeps tensors below 4096 entries in 32 bits, under its own names."""
    model = adapted_mlp("cps-lora")
    optimizer = torch.optim.AdamW(trainable(model))
    layer = first_layer(model)
    _, B = factors(layer)
    optimizer.state[B] = {"step": 3, "state1": torch.full_like(B, 2.0), "state2": torch.full_like(B, 5.0)}
    new = swapped(partition(layer), 4, 0)
    moved = partition(layer).row_labels != new.row_labels
    assert move_layer(layer, "default", new, optimizer).state == "kept"
    state: dict[str, Any] = optimizer.state[B]
    assert torch.equal(state["state1"], torch.where(moved[:, None], 0.0, 2.0).expand_as(B))
    assert torch.equal(state["state2"], torch.full_like(B, 5.0))


def test_without_an_optimizer_or_before_its_first_step_there_is_no_state() -> None:
    model = adapted_mlp("cps-lora")
    layer = first_layer(model)
    assert move_layer(layer, "default", swapped(partition(layer), 4, 2)).state == "none"
    optimizer = torch.optim.AdamW(trainable(model))
    assert move_layer(layer, "default", swapped(partition(layer), 2, 2), optimizer).state == "none"
    assert not optimizer.state


def test_the_change_of_the_update_is_measured() -> None:
    model = adapted_mlp("hybrid")
    layer = first_layer(model)
    before = layer.get_delta_weight("default").detach().double()
    move = move_layer(layer, "default", swapped(partition(layer), 6, 4))
    after = layer.get_delta_weight("default").detach().double()
    assert move.delta_change == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)
    assert move.delta_change > 0.05


def test_a_layer_that_was_never_placed_cannot_move() -> None:
    model = adapted_mlp("cps-lora", placement="calibrate")
    with pytest.raises(UnplacedAdapterError, match="calibrate"):
        move_layer(first_layer(model), "default", Partition.from_labels([0] * 24, [0] * 20, 3))


def test_sharded_factors_are_refused() -> None:
    """Outside its forward, FSDP1 and ZeRO-3 leave a parameter without its rows."""
    model = adapted_mlp("cps-lora")
    layer = first_layer(model)
    new = swapped(partition(layer), 4, 2)
    factors(layer)[0].data = torch.empty(0)
    with pytest.raises(TypeError, match=r"'default' are sharded .*repartition=\[\], or with DDP"):
        move_layer(layer, "default", new)


def test_labels_that_do_not_fit_leave_the_layer_as_it_was() -> None:
    model = adapted_mlp("g-lora")
    layer = first_layer(model)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(PlacementError, match="covered rows 24 instead of 12"):
        move_layer(layer, "default", Partition.whole(24, 20))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
