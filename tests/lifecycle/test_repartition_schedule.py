"""When events happen, what they report, and what happens when they do not."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from moving import adapted_mlp, partition, swapped, train, trainable

from localora import CpsLoraConfig, Partition, Repartitioner, RepartitionEvent, ScheduleError
from localora.adapter.status import AdapterLayers, adapted_layers
from localora.lifecycle import planning
from localora.lifecycle.report import LayerReport
from tiny_models import mlp_batch

BATCHES = [mlp_batch(seed=seed) for seed in range(3)]


def propose(monkeypatch: pytest.MonkeyPatch, partitions: Callable[[str, Partition], tuple[Partition, float]]) -> None:
    """Replaces the planner: `partitions` gives a layer's new partition and what it captures; the old captures 0.5."""

    def planned(passes: object, adapter: AdapterLayers, *_: object) -> dict[str, LayerReport]:
        found = {key: partitions(key, adapter.partition(key)) for key in adapter.layers}
        return {
            key: LayerReport(key, new, captured_energy=captured, held_before=0.5)
            for key, (new, captured) in found.items()
        }

    monkeypatch.setitem(planning.PLANNERS, "coclustering", planning.Planner(planned, 0, None))


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
    assert CpsLoraConfig(repartition=[0.55, 0.07]).repartition_steps(100) == [7, 55]  # 0.55 * 100 > 55 in floats
    assert config.repartition_steps(12) == [1, 2, 4, 12]
    assert config.repartition_steps(2) == [1, 2]  # never before the first step, and once where two fall together


def test_events_happen_at_the_fractions() -> None:
    assert [event.step for event in run(10, repartition=[0.25, 0.6]).events] == [3, 6]


def test_events_happen_every_n_steps_but_not_after_the_last() -> None:
    assert [event.step for event in run(9, repartition=[], repartition_every=3).events] == [3, 6]


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
    with pytest.raises(ScheduleError, match=r"3 steps are done, .*after step 3, .*frozen term was not loaded"):
        Repartitioner(model, None, 10, BATCHES, done_steps=3)
    assert Repartitioner(model, None, 10, BATCHES, done_steps=2).step()
    repartitioner = Repartitioner(model, None, 10, BATCHES, done_steps=3)
    assert [(event.step if event else None) for event in (repartitioner.step() for _ in range(4))] == [
        None, None, 6, None,
    ]  # fmt: skip


def test_events_before_a_late_placement_are_left_out() -> None:
    model = adapted_mlp("cps-lora", repartition=[0.25, 0.6])
    repartitioner = Repartitioner(model, None, 10, BATCHES, done_steps=3, placed_late=True)
    assert [event.step for event in (repartitioner.step() for _ in range(7)) if event] == [6]


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
    assert "training ended at step 4, before the events at [5]" in caplog.text


def test_an_event_without_batches_says_so() -> None:
    with pytest.raises(ScheduleError, match="no batches"):
        Repartitioner(adapted_mlp("cps-lora", repartition=[1.0]), None, 1, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repartition": [0.0]}, r"repartition must be a number in \(0, 1\], got 0.0"),
        ({"repartition": [1.5]}, r"repartition must be a number in \(0, 1\], got 1.5"),
        ({"repartition": [0.5], "repartition_every": 3}, "not both"),
        ({"repartition_place": "loss"}, "found, random, kept"),
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
    model = adapted_mlp("cps-lora", repartition=[1.0])
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    train(model, optimizer, 1)
    before = copy.deepcopy(model)
    event = Repartitioner(model, optimizer, 1, BATCHES).step()
    assert isinstance(event, RepartitionEvent)
    squares, rows, cols = 0.0, 0, 0
    for (_, old), (_, new) in zip(adapted_layers(before, "default"), adapted_layers(model, "default"), strict=True):
        squares += float(old.get_delta_weight("default").detach().double().square().sum())
        rows += int((partition(old).row_labels != partition(new).row_labels).sum())
        cols += int((partition(old).col_labels != partition(new).col_labels).sum())
    assert (rows, cols) == (10, 6)
    with torch.no_grad():
        loss = before.eval()(**BATCHES[0])["loss"].item()
    assert event.seconds > 0
    assert event.to_dict() == {
        "step": 1,
        "place": "found",
        "rows_moved": 10,
        "cols_moved": 6,
        "captured_before": 0.5,
        "captured_after": 0.75,
        "frozen_rank": 12,
        "joined_norm": pytest.approx(squares**0.5, rel=1e-5),
        "recompression_error": 0.0,
        "loss_before": pytest.approx(loss, rel=1e-6),
        "loss_after": pytest.approx(loss, rel=1e-6),
        "seconds": event.seconds,
    }
    assert "rank 12 now; 10 rows and 6 columns moved (found), captured 50.0% -> 75.0%" in str(event)


# The real planners


def test_clusters_found_anew_capture_more_of_the_present_gradient() -> None:
    event = run(2, repartition=[0.5]).events[0]
    assert event.captured_before is not None
    assert event.captured_after is not None
    assert event.captured_after > event.captured_before + 0.05


@pytest.mark.parametrize(("place", "batches"), [("found", 3), ("kept", 1), ("random", 1)])
def test_events_that_plan_nothing_observe_one_batch(place: str, batches: int) -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0], repartition_place=place)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    Repartitioner(model, None, 1, BATCHES).step()
    assert (passes.count(True), passes.count(False)) == (batches, 2)
