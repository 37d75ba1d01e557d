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
    defaults: dict[str, Any] = {"init_weights": True, "placement": "calibrate", "settle": 1.0}
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


CARRIED = {"carry_residual": True}
OBSERVING = {"repartition_observe": "training"}


@pytest.mark.parametrize(
    ("method", "options", "stops"),
    [
        ("cps-lora", {}, {2: [3, 8], 7: [8], 8: []}),
        ("cps-lora", CARRIED, {5: [8]}),
        ("g-lora", {}, {5: [8]}),
        ("cps-lora", OBSERVING, {1: [3, 8], 3: [8], 7: [8], 8: []}),
        ("hybrid", {**OBSERVING, "repartition_normalise": True, "repartition_signal": "gradient"}, {5: [8]}),
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
    assert all(event.rows_moved > 0 for event in localization.repartitioners["default"].events)
    if options.get("carry_residual"):
        assert all(event.carry_rank > 0 for event in localization.repartitioners["default"].events)
    expected = whole.model.state_dict()
    for stopped_at, events in stops.items():
        checkpoint = tmp_path / "whole" / f"checkpoint-{stopped_at}"
        localization = LocalizationCallback(checkpoint=checkpoint)
        resumed, _ = trainer(tmp_path / f"resumed-{stopped_at}", method, localization=localization, **options)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert steps(localization) == events
        assert not localization.reports  # the placement was read back, not made again
        assert losses(resumed) == losses(whole)
        found = resumed.model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


FILE = "localora_repartition_default_0.safetensors"


@pytest.mark.parametrize(
    "options", [OBSERVING, {"repartition": [], "repartition_every": 4}], ids=["observing", "every"]
)
def test_a_schedule_with_a_state_keeps_it_in_the_checkpoint_and_wants_it_back(
    options: dict[str, Any], tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    options = {"repartition": [0.25, 0.6], **options}
    whole, _ = trainer(tmp_path, arguments=saving, callbacks=(StopAt(6),), **options)
    whole.train()
    checkpoint = tmp_path / "checkpoint-4"
    assert (checkpoint / FILE).is_file()
    again, localization = trainer(tmp_path, callbacks=(StopAt(5),), **options)
    again.train(resume_from_checkpoint=str(checkpoint))  # in the run's own folder: found without being told
    assert localization.repartitioners["default"].done_steps == 5

    (tmp_path / "checkpoint-2" / FILE).rename(checkpoint / FILE)
    with pytest.raises(ScheduleError, match="is of step 2, but training resumes after step 4"):
        trainer(tmp_path, **options)[0].train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / FILE).write_bytes(b"not a safetensors file")
    with pytest.raises(ScheduleError, match="is damaged"):
        trainer(tmp_path, **options)[0].train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / FILE).unlink()
    with pytest.raises(ScheduleError, match=rf"{FILE} is missing.*LocalizationCallback\(checkpoint=folder\)"):
        trainer(tmp_path, **options)[0].train(resume_from_checkpoint=str(checkpoint))


def test_a_schedule_without_a_state_writes_none(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path, arguments={"save_strategy": "steps", "save_steps": 4}, repartition=[0.25])
    made.train()
    assert (tmp_path / "checkpoint-4").is_dir()
    assert not list(tmp_path.rglob("localora_repartition*"))


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"bf16": True}], ids=["", "ckpt", "bf16"])
def test_every_micro_batch_of_training_is_observed_and_no_other(options: dict[str, Any], tmp_path: Path) -> None:
    """Three micro-batches a step, and evaluations between the steps; observation does not change the curve."""
    curves = []
    for observe in ("event", "training"):
        arguments = {"gradient_accumulation_steps": 3, "max_steps": 5, "eval_strategy": "steps", "eval_steps": 1}
        made, localization = trainer(
            tmp_path,
            repartition=[1.0],
            repartition_observe=observe,
            callbacks=(StopAt(4),),
            arguments={**arguments, **options},
        )
        made.train()
        curves.append(losses(made))
    assert curves[0] == curves[1]
    signal = localization.repartitioners["default"].signal
    assert signal is not None
    assert {gradient.batches for gradient in signal.gradients.values()} == {12}
    assert not any(layer.get_base_layer()._forward_hooks for layer in signal.layers.values())


def test_half_precision_that_scales_the_loss_is_refused(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path, **OBSERVING)
    made.args.fp16 = True
    with pytest.raises(ScheduleError, match=r"fp16 scales the loss .* Set repartition_observe='event'"):
        made.train()


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
    """With events that move nothing the run is, bit for bit, the run without them; dropout is drawn too."""
    curves = []
    for schedule in ({"repartition": []}, {"repartition": [0.3, 0.6]}):
        options = {**schedule, "dropout": 0.2, "settle": 1e-9}
        made, localization = trainer(tmp_path, arguments={"max_steps": 6}, **options)
        made.train()
        assert all(event.rows_moved == 0 for event in localization.repartitioners["default"].events)
        curves.append((losses(made), [p.detach().clone() for p in made.model.parameters()]))
    assert len(localization.repartitioners["default"].events) == 2
    assert curves[0][0] == curves[1][0]
    assert all(torch.equal(a, b) for a, b in zip(curves[0][1], curves[1][1], strict=True))


def test_a_run_that_stops_early_ends_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, localization = trainer(tmp_path, repartition=[0.25, 0.75], callbacks=(StopAt(5),))
    with caplog.at_level(logging.WARNING, logger="localora"):
        made.train()
    assert steps(localization) == [3]
    assert "training ended at step 5, before the re-partitions at [9]" in caplog.text


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
    assert event.state == "kept"
    assert event.captured_after > event.captured_before
