"""Re-partition inside a real Trainer: at the right steps, and the same after a stop as without one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from localora import LocalizationCallback, ScheduleError
from method_table import BY_NAME
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

pytestmark = pytest.mark.slow


class Examples(Dataset[dict[str, Tensor]]):
    def __init__(self, size: int) -> None:
        self.batch = token_batch(examples=size)

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[index] for key, value in self.batch.items()}


class StopAt(TrainerCallback):
    """A run that is cut off: nothing after this step happens."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_training_stop = state.global_step >= self.step
        return control


def trainer(
    folder: Path,
    method: str = "cps-lora",
    callbacks: tuple[TrainerCallback, ...] = (),
    localization: LocalizationCallback | None = None,
    arguments: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Trainer, LocalizationCallback]:
    """12 examples in batches of two: six steps an epoch, fewer than the eight batches an event may ask for."""
    defaults: dict[str, Any] = {"init_weights": True, "placement": "calibrate"}
    config = BY_NAME[method].config(target_modules=LLAMA_TARGETS, **{**defaults, **options})
    torch.manual_seed(3)
    model = get_peft_model(tiny_llama(), config)
    localization = localization or LocalizationCallback()
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 2,
        "learning_rate": 2e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    arguments_ = TrainingArguments(**{**values, **(arguments or {})})
    made = Trainer(
        model, arguments_, train_dataset=Examples(12), eval_dataset=Examples(4), callbacks=[localization, *callbacks]
    )
    return made, localization


def losses(made: Trainer) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in made.state.log_history if "loss" in entry}


def steps(localization: LocalizationCallback) -> list[int]:
    return [event.step for event in localization.repartitioners["default"].events]


@pytest.mark.parametrize(
    ("method", "options", "stops"),
    [
        ("cps-lora", {}, {2: [3, 8], 3: [8], 7: [8], 8: []}),
        ("cps-lora", {"frozen": "merged"}, {2: [3, 8], 5: [8], 9: []}),
        ("cps-lora", {"frozen_rank": 14, "repartition_place": "random"}, {5: [8], 8: []}),
        ("g-lora", {}, {5: [8]}),
        ("hybrid", {"repartition_place": "kept"}, {5: [8]}),
        ("lora-by-share", {}, {3: [8], 5: [8]}),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_run_to_the_last_bit(
    method: str, options: dict[str, Any], stops: dict[int, list[int]], tmp_path: Path
) -> None:
    """Events after steps 3 and 8; checkpoints before them, between them (in the second epoch too), and right at one."""
    options = {**options, "repartition": [0.25, 0.6], "dropout": 0.1}
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole, localization = trainer(tmp_path / "whole", method, arguments=saving, **options)
    whole.train()
    assert steps(localization) == [3, 8]
    expected = whole.model.state_dict()
    assert any("localized_frozen_A" in key for key in expected)
    checkpoints = sorted(path.name for path in (tmp_path / "whole" / "checkpoint-5").iterdir())
    assert not [name for name in checkpoints if "localora" in name]  # the adapter and the optimizer are enough
    for stopped_at, events in stops.items():
        checkpoint = tmp_path / "whole" / f"checkpoint-{stopped_at}"
        resumed, localization = trainer(tmp_path / f"resumed-{stopped_at}", method, **options)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert steps(localization) == events
        assert not localization.reports  # the placement was read back, not made again
        assert losses(resumed) == losses(whole)
        assert logged(resumed) == logged(whole)
        found = resumed.model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


def logged(made: Trainer) -> list[dict[str, Any]]:
    """The events in the trainer's own log history, without what the clock says."""
    entries: list[Any] = made.state.log_history
    events = [entry["repartition"] for entry in entries if "repartition" in entry]
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]


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
