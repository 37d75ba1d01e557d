"""When events happen, what they report, and what happens when they do not."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from moving import adapted_mlp, first_layer, partition, swapped, train, trainable
from torch import nn

from localora import CalibrationError, CpsLoraConfig, Partition, Repartitioner, RepartitionEvent, ScheduleError
from localora.adapter.model import adapted_layers
from localora.lifecycle import schedule
from localora.lifecycle.planning import Proposal
from localora.placement.agreement import adjusted_rand_index
from tiny_models import mlp_batch

BATCHES = [mlp_batch(seed=seed) for seed in range(3)]


def propose(monkeypatch: pytest.MonkeyPatch, partitions: Callable[[str, Partition], tuple[Partition, float]]) -> None:
    """Replaces the planner: `partitions` gives a layer's new partition and what it captures; the old captures 0.5."""

    def planned(passes: object, layers: dict[str, nn.Module], *_: object) -> dict[str, Proposal]:
        found = {key: partitions(key, partition(layer)) for key, layer in layers.items()}
        return {key: Proposal(new, 0.5, captured) for key, (new, captured) in found.items()}

    monkeypatch.setattr(schedule, "propose", planned)


def run(steps: int, total: int | None = None, method: str = "cps-lora", **options: object) -> Repartitioner:
    model = adapted_mlp(method, **options)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    repartitioner = Repartitioner(model, optimizer, total or steps, BATCHES)
    for step in range(steps):
        train(model, optimizer, 1, first=step)
        repartitioner.step()
    return repartitioner


# When


def test_fractions_of_training_round_up_to_steps() -> None:
    config = CpsLoraConfig(repartition=[0.05, 0.15, 0.3, 1.0])
    assert config.repartition_steps(100) == [5, 15, 30, 100]
    assert config.repartition_steps(12) == [1, 2, 4, 12]
    assert config.repartition_steps(2) == [1, 2]  # never before the first step, and once where two fall together


def test_events_happen_at_the_fractions() -> None:
    assert [event.step for event in run(10, repartition=[0.25, 0.6]).events] == [3, 6]


def test_events_happen_every_n_steps_but_not_after_the_last() -> None:
    assert [event.step for event in run(9, repartition=[], repartition_every=3).events] == [3, 6]


def settling(monkeypatch: pytest.MonkeyPatch, changes: list[int]) -> None:
    """At the n-th event `changes[n]` rows of the first layer move; the second layer agrees throughout."""
    left = iter(changes)

    def planned(key: str, old: Partition) -> tuple[Partition, float]:
        return (swapped(old, next(left), 0) if key.endswith("first") else old), 0.75

    propose(monkeypatch, planned)


def test_events_every_n_steps_end_once_every_layer_has_settled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """8 of 24 rows is agreement far below 0.8, 0 rows is 1: the third event is the last of nine."""
    settling(monkeypatch, [8, 8, 0])
    with caplog.at_level(logging.INFO, logger="localora"):
        repartitioner = run(10, repartition=[], repartition_every=1, settle=0.8)
        repartitioner.finish()
    assert [(event.step, event.settled) for event in repartitioner.events] == [(1, False), (2, False), (3, True)]
    assert repartitioner.settled
    assert "settled; the re-partitions at steps [4, 5, 6, 7, 8, 9] are dropped" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_settled_schedule_is_still_settled_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"repartition": [], "repartition_every": 2, "settle": 0.8}
    settling(monkeypatch, [8, 0])
    before = run(5, total=10, **options)
    assert [event.step for event in before.events] == [2, 4]
    resumed = Repartitioner(before.model, None, 10, BATCHES, done_steps=5)
    assert resumed.due == [6, 8]
    resumed.load_state_dict(before.state_dict())
    assert [resumed.step() for _ in range(5)] == [None] * 5
    resumed.finish()


def test_fixed_fractions_are_kept_when_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    settling(monkeypatch, [0, 8])
    events = run(4, repartition=[0.5, 1.0], settle=0.8).events
    assert [(event.step, event.settled, event.rows_moved) for event in events] == [(2, True, 0), (4, False, 8)]


def test_no_schedule_means_no_event_and_no_batch_read() -> None:
    def never() -> object:
        raise AssertionError("batches were read")
        yield

    model = adapted_mlp("cps-lora", repartition=[])
    repartitioner = Repartitioner(model, None, 10, never())
    assert [repartitioner.step() for _ in range(10)] == [None] * 10
    repartitioner.finish()


def test_events_before_a_resumed_step_are_not_repeated() -> None:
    model = adapted_mlp("cps-lora", repartition=[0.25, 0.6])
    repartitioner = Repartitioner(model, None, 10, BATCHES, done_steps=3)
    assert [(event.step if event else None) for event in (repartitioner.step() for _ in range(4))] == [
        None, None, 6, None,
    ]  # fmt: skip


def test_batches_are_read_once_and_at_most_so_many() -> None:
    read = []

    def stream() -> object:
        for number in range(100):
            read.append(number)
            yield mlp_batch(seed=number)

    model = adapted_mlp("cps-lora", repartition=[], repartition_every=1)
    repartitioner = Repartitioner(model, None, 4, stream(), steps=2)
    losses = [repartitioner.step().loss_before for _ in range(2)]  # type: ignore[union-attr]
    assert read == [0, 1]
    model.eval()
    with torch.no_grad():
        assert model(**mlp_batch(seed=0))["loss"].item() == pytest.approx(repartitioner.events[-1].loss_after)
    assert losses[1] == repartitioner.events[0].loss_after  # the same batch again


def test_a_jump_over_an_event_is_an_error() -> None:
    repartitioner = Repartitioner(adapted_mlp("cps-lora", repartition=[0.5]), None, 10, BATCHES)
    repartitioner.at(4)
    with pytest.raises(ScheduleError, match=r"scheduled after step 5 did not happen and 6 steps are done.*step\(\)"):
        repartitioner.at(6)


def test_an_event_that_never_happened_is_an_error_at_the_end() -> None:
    repartitioner = Repartitioner(adapted_mlp("cps-lora", repartition=[0.2, 0.5]), None, 10, BATCHES)
    with pytest.raises(ScheduleError, match=r"scheduled after steps \[2, 5\] never happened"):
        repartitioner.finish(10)


def test_training_that_ends_early_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    repartitioner = run(4, total=10, repartition=[0.2, 0.5])
    assert [event.step for event in repartitioner.events] == [2]
    with caplog.at_level(logging.WARNING, logger="localora"):
        repartitioner.finish()
    assert "training ended at step 4, before the re-partitions at [5]" in caplog.text


def test_an_event_without_batches_says_so() -> None:
    repartitioner = Repartitioner(adapted_mlp("cps-lora", repartition=[1.0]), None, 1, [])
    with pytest.raises(CalibrationError, match="no batches"):
        repartitioner.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repartition": [0.0]}, r"fractions of training in \(0, 1\], got 0.0"),
        ({"repartition": [1.5]}, r"fractions of training in \(0, 1\], got 1.5"),
        ({"repartition": [0.5], "repartition_every": 3}, "not both"),
        ({"settle": 0.0}, r"settle must lie in \(0, 1\]"),
        ({"repartition_signal": "loss"}, "gradient, delta, both"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CpsLoraConfig(**options)  # type: ignore[arg-type]


# What


def test_an_event_says_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    """First layer: 4 rows and 2 columns change their cluster; second: 6 and 4; counted here, not there."""
    counts = {"first": (4, 2), "second": (6, 4)}
    propose(monkeypatch, lambda key, old: (swapped(old, *counts[key.rsplit(".", 1)[1]]), 0.75))
    model = adapted_mlp("cps-lora", repartition=[1.0], settle=1.0)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    train(model, optimizer, 1)
    before = copy.deepcopy(model)
    event = Repartitioner(model, optimizer, 1, BATCHES).step()
    assert isinstance(event, RepartitionEvent)
    changes, rows, cols = [], 0, 0
    for (_, old), (_, new) in zip(adapted_layers(before, "default"), adapted_layers(model, "default"), strict=True):
        a, b = (layer.get_delta_weight("default").detach().double() for layer in (old, new))
        changes.append(float((a - b).norm() / a.norm()))
        rows += int((partition(old).row_labels != partition(new).row_labels).sum())
        cols += int((partition(old).col_labels != partition(new).col_labels).sum())
    assert (rows, cols) == (10, 6)
    with torch.no_grad():
        losses = [m.eval()(**BATCHES[0])["loss"].item() for m in (before, model)]
    assert losses[0] != losses[1]
    assert 0 < event.seconds < 60
    assert event.to_dict() == {
        "step": 1,
        "rows_moved": 10,
        "cols_moved": 6,
        "layers_moved": 2,
        "layers": 2,
        "captured_before": 0.5,
        "captured_after": 0.75,
        "delta_change": pytest.approx(max(changes), rel=1e-4),
        "carry_rank": 0,
        "loss_before": pytest.approx(losses[0], rel=1e-6),
        "loss_after": pytest.approx(losses[1], rel=1e-6),
        "state": "kept",
        "settled": False,
        "seconds": event.seconds,
    }
    assert "2 of 2 layers, 10 rows and 6 columns moved, captured 50.0% -> 75.0%" in str(event)


def test_a_settled_layer_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0], settle=0.6)
    first, second = (partition(layer) for _, layer in adapted_layers(model, "default"))
    proposals = {"first": swapped(first, 2, 2), "second": swapped(second, 4, 8)}
    agreements = [
        min(adjusted_rand_index(old.row_labels, new.row_labels), adjusted_rand_index(old.col_labels, new.col_labels))
        for old, new in zip((first, second), proposals.values(), strict=True)
    ]
    assert agreements[0] > 0.6 > agreements[1]
    propose(monkeypatch, lambda key, _: (proposals[key.rsplit(".", 1)[1]], 0.75))
    before = {key: value.clone() for key, value in first_layer(model).state_dict().items()}
    event = Repartitioner(model, None, 1, BATCHES).step()
    assert event is not None
    assert (event.layers_moved, event.rows_moved, event.cols_moved) == (1, 4, 8)
    assert event.captured_after == pytest.approx((0.5 + 0.75) / 2)  # the settled layer keeps what it had
    assert all(torch.equal(value, before[key]) for key, value in first_layer(model).state_dict().items())


def test_a_proposal_that_captures_no_more_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    propose(monkeypatch, lambda _, old: (swapped(old, 8, 8), 0.5))
    model = adapted_mlp("cps-lora", repartition=[1.0], settle=1.0)
    event = Repartitioner(model, None, 1, BATCHES).step()
    assert event is not None
    assert (event.layers_moved, event.rows_moved, event.state) == (0, 0, "none")
    assert event.loss_before == event.loss_after


def test_an_event_that_proposes_the_present_labels_changes_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observation included: the passes of an event touch neither gradients nor parameters nor the optimizer."""
    propose(monkeypatch, lambda _, old: (old, 0.75))
    runs = []
    for schedule_options in ({"repartition": []}, {"repartition": [step / 7 for step in range(1, 7)]}):
        model = adapted_mlp("cps-lora", settle=1.0, **schedule_options)
        optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
        repartitioner = Repartitioner(model, optimizer, 7, BATCHES)
        losses = []
        for step in range(6):
            losses += train(model, optimizer, 1, first=step)
            repartitioner.step()
        runs.append((losses, optimizer.state_dict(), model.state_dict(), len(repartitioner.events)))
    assert [events for *_, events in runs] == [0, 6]
    assert runs[0][0] == runs[1][0]
    for a, b in zip(runs[0][1]["state"].values(), runs[1][1]["state"].values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(torch.equal(value, runs[1][2][key]) for key, value in runs[0][2].items())


def test_cleared_moments_are_said_in_the_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    propose(monkeypatch, lambda _, old: (swapped(old, 4, 2), 0.75))
    model = adapted_mlp("cps-lora", repartition=[1.0], settle=1.0)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    train(model, optimizer, 1)
    blocks = next(iter(optimizer.state.values()))
    blocks["exp_avg"] = blocks["exp_avg"].to(torch.uint8)
    with caplog.at_level(logging.INFO, logger="localora"):
        event = Repartitioner(model, optimizer, 1, BATCHES).step()
    assert event is not None
    assert event.state == "cleared"
    assert "optimizer state cleared" in caplog.text


# The real planners


@pytest.mark.parametrize("signal", ["gradient", "delta", "both"])
def test_clusters_follow_the_signal(signal: str) -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0], repartition_signal=signal, settle=1.0)
    event = Repartitioner(model, None, 1, BATCHES).step()
    assert event is not None
    if signal == "delta":  # its clusters' terms make up dW, so no partition captures more
        assert event.captured_before == pytest.approx(1.0)
        assert event.layers_moved == 0
    else:
        assert event.layers_moved == 2
        assert event.captured_after > event.captured_before + 0.05


def test_a_block_follows_the_importance() -> None:
    event = run(4, method="g-lora", repartition=[0.5], settle=1.0).events[0]
    assert event.layers_moved == 2
    assert event.captured_after > event.captured_before + 0.05
    assert event.state == "kept"
