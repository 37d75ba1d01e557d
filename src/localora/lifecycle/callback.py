"""LocalizationCallback: places adapters inside any transformers or TRL trainer, and does their scheduled events."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from localora.adapter.model import active_adapters, adapted_layers
from localora.lifecycle.calibration import calibrate
from localora.lifecycle.passes import CalibrationError, LossFn
from localora.lifecycle.random_state import random_state_kept
from localora.lifecycle.report import CalibrationReport
from localora.lifecycle.schedule import Repartitioner

EVENT = "repartition"  # the key of an event in the Trainer's log history, which checkpoints keep


class LocalizationCallback(TrainerCallback):
    """Places every active localora adapter at train begin, and does the events of its config's schedule.

    Calibration uses the trainer's own first batches. Adapters that are placed already, for instance because training
    resumes from a checkpoint, keep their placement, and events before the resumed step are not repeated. The random
    state of the run is restored afterwards, so the data order is that of a run without the callback.

    Args:
        steps: batches to observe, at the start and at each event.
        loss_fn: (model, batch) -> loss, for trainers whose batches the model itself cannot turn into a loss, as DPO's.
        progress: called with (passes done, passes in all) while an adapter is placed at train begin.

    Attributes:
        reports: the :class:`CalibrationReport` of each adapter placed here, by adapter name.
        repartitioners: by adapter name; their `events` say what each event did, as does the trainer's log history.

    Raises:
        ScheduleError: at train begin, if events could not happen; at train end, if one did not.
    """

    def __init__(
        self, steps: int = 8, loss_fn: LossFn | None = None, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.steps = steps
        self.loss_fn = loss_fn
        self.progress = progress
        self.reports: dict[str, CalibrationReport] = {}
        self.repartitioners: dict[str, Repartitioner] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        # accelerate's wrapper keeps a state that an iteration broken off half-way would leave behind.
        loader = getattr(kwargs["train_dataloader"], "base_dataloader", kwargs["train_dataloader"])
        names = active_adapters(model)
        unplaced = {name for name in names if any(x.is_unplaced(name) for _, x in adapted_layers(model, name))}
        batches = _FirstBatches(loader, self.steps)
        loss_fn = self.loss_fn or _trainer_loss
        for name in names:
            if name in unplaced:
                with random_state_kept(), _autocast(args):
                    self.reports[name] = calibrate(
                        model, batches, self.steps, loss_fn, adapter_name=name, progress=self.progress
                    )
            with random_state_kept():  # it reads batches
                self.repartitioners[name] = Repartitioner(
                    model,
                    kwargs.get("optimizer"),
                    state.max_steps,
                    batches,
                    steps=self.steps,
                    loss_fn=loss_fn,
                    adapter_name=name,
                    done_steps=state.global_step,
                )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for name, repartitioner in self.repartitioners.items():
            with random_state_kept() if state.global_step in repartitioner.due else nullcontext(), _autocast(args):
                event = repartitioner.at(state.global_step)
            if event is not None:
                history: list[Any] = state.log_history  # it holds more than the floats that transformers says
                history.append({EVENT: event.to_dict(), "adapter": name, "step": event.step})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for repartitioner in self.repartitioners.values():
            repartitioner.finish(state.global_step)


class _FirstBatches:
    """The first batches of a data loader, read when they are first asked for, and kept.

    Read once: some samplers, accelerate's among them, shuffle anew after each pass, and then calibration's pass would
    decide which batches the events of a run see, but not which ones those of a resumed run see.
    """

    def __init__(self, loader: Iterable[Any], count: int) -> None:
        self.loader, self.count = loader, count
        self.kept: list[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.kept is None:
            self.kept = list(islice(self.loader, self.count))
        return iter(self.kept)


def _trainer_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """The model's own loss on what its forward accepts of the batch; collators add keys for the trainer alone."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    accepted = inspect.signature(base.forward).parameters
    output = model(**{key: value for key, value in batch.items() if key in accepted})
    loss = output.get("loss") if isinstance(output, Mapping) else None
    if not isinstance(loss, Tensor):
        raise CalibrationError(
            "this trainer's batches give the model no loss, so calibration cannot tell what matters; pass "
            "LocalizationCallback(loss_fn=lambda model, batch: ...)"
        )
    return loss


def _autocast(args: TrainingArguments) -> Any:
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return torch.autocast(args.device.type, dtype=dtype) if dtype else nullcontext()
