"""Events inside a real Trainer: at the right steps, and nothing else of the run changes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from placed_trainer import steps, trainer
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from localora import LocalizationCallback, ScheduleError

pytestmark = pytest.mark.slow


class StopAt(TrainerCallback):
    """A run that is cut off: nothing after this step happens."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_training_stop = state.global_step >= self.step
        return control


def test_events_count_optimizer_steps_under_gradient_accumulation(tmp_path: Path) -> None:
    made, localization = trainer(
        tmp_path, repartition=[0.25, 0.75], arguments={"gradient_accumulation_steps": 3, "max_steps": 8}
    )
    made.train()
    assert made.state.global_step == 8
    assert steps(localization) == [2, 6]


def test_events_every_n_steps(tmp_path: Path) -> None:
    made, localization = trainer(tmp_path, repartition=[], repartition_every=4)
    made.train()
    assert steps(localization) == [4, 8]


def test_events_do_not_change_the_order_of_the_data(tmp_path: Path) -> None:
    """Nor what dropout draws: the random state after a run with events is that of a run without."""
    orders = []
    for schedule in ({"repartition": []}, {"repartition": [0.3, 0.6]}):
        seen: list[Tensor] = []
        made, _ = trainer(tmp_path, arguments={"max_steps": 6}, dropout=0.2, **schedule)
        made.model.register_forward_pre_hook(
            lambda model, _, inputs, seen=seen: seen.append(inputs["input_ids"]) if model.training else None,
            with_kwargs=True,
        )
        made.train()
        last = seen[-2:]
        orders.append((last, torch.random.get_rng_state()))
    assert all(torch.equal(a, b) for a, b in zip(orders[0][0], orders[1][0], strict=True))
    assert torch.equal(orders[0][1], orders[1][1])


def test_a_run_that_stops_early_ends_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, localization = trainer(tmp_path, repartition=[0.25, 0.75], callbacks=(StopAt(5),))
    with caplog.at_level(logging.WARNING, logger="localora"):
        made.train()
    assert steps(localization) == [3]
    assert "training ended at step 5, before the events at [9]" in caplog.text


def test_a_missed_event_ends_the_run_with_an_error(tmp_path: Path) -> None:
    class Deaf(LocalizationCallback):
        """As if a trainer did not report its steps."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            pass

    made, _ = trainer(tmp_path, localization=Deaf(), repartition=[0.25])
    with pytest.raises(ScheduleError, match=r"scheduled after steps \[3\] never happened"):
        made.train()


def test_each_event_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, localization = trainer(tmp_path, repartition=[0.25])
    with caplog.at_level(logging.INFO, logger="localora"):
        made.train()
    (event,) = localization.repartitioners["default"].events
    assert str(event) in caplog.text
    (entry,) = (entry for entry in made.state.log_history if "repartition" in entry)
    assert entry == {"repartition": event.to_dict(), "adapter": "default", "step": 3}
    assert event.captured_before is not None
    assert event.captured_after is not None
    assert event.captured_after > event.captured_before
    assert made.optimizer is not None
