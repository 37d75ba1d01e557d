"""LocalizationCallback: places adapters inside any transformers or TRL trainer, and does their scheduled events."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from localora.adapter.status import active_adapters, adapter_in
from localora.lifecycle.calibration import calibrate
from localora.lifecycle.passes import CalibrationError, LossFn, ZeroGradientError
from localora.lifecycle.report import CalibrationReport
from localora.lifecycle.schedule import Repartitioner
from localora.lifecycle.trainer import before_training_losses, calling_trainer, log, loss_of, makes_its_batches, show

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

# Keys in the Trainer's log history, which checkpoints keep, and in its trackers.
CALIBRATION = "calibration"
EVENT = "repartition"


class LocalizationCallback(TrainerCallback):
    """Places every active localora adapter at train begin, and does the events of its config's schedule.

    Calibration uses the trainer's own first batches and the loss it trains on. Where the training step makes its
    batches itself, as GRPO does, that is the first step's batch alone, or the first one with any gradient, and the
    adapter is placed just before its loss. What was found, and each event, is an entry of the trainer's log history and
    goes to its trackers. Adapters that are placed already, for instance because training resumes from a checkpoint,
    keep their placement, and events before the resumed step are not repeated. The random state of the run is restored
    afterwards, so the data order is that of a run without the callback.

    Args:
        steps: batches to observe, at the start and at each event.
        loss_fn: (model, batch) -> loss; default the trainer's own `compute_loss`.
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
        self._given: Trainer | None = None
        self._trainer: Trainer  # from train begin on
        self.reports: dict[str, CalibrationReport] = {}
        self.repartitioners: dict[str, Repartitioner] = {}

    @classmethod
    def for_trainer(cls, trainer: Trainer, **options: Any) -> LocalizationCallback:
        """One that is added to a trainer already made, and knows it; others find the trainer that calls them.

        `options` are the arguments of the class.
        """
        callback = cls(**options)
        callback._given = trainer
        trainer.add_callback(callback)
        return callback

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer = self._given or calling_trainer(state)
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        if makes_its_batches(self._trainer):
            self._wait_to_place(model)  # the trainer generates before it has a batch to place on
            before_training_losses(self._trainer, lambda batch: self._begun(model, optimizer, batch))
            return
        # accelerate's wrapper keeps a state that an iteration broken off half-way would leave behind.
        loader = getattr(kwargs["train_dataloader"], "base_dataloader", kwargs["train_dataloader"])
        # Read once: some samplers, accelerate's among them, shuffle anew after each pass, and then calibration's pass
        # would decide which batches the events of a run see, but not which ones those of a resumed run see.
        self._begin(model, optimizer, cache(lambda: list(islice(loader, self.steps))))

    def _begun(self, model: nn.Module, optimizer: Any, batch: Any) -> bool:
        """:meth:`_begin` on one batch, unless it teaches nothing: completions that are rewarded all alike."""
        try:
            self._begin(model, optimizer, lambda: [batch])
        except ZeroGradientError as error:
            logger.warning("step %d: %s; the adapter is placed later", self._trainer.state.global_step + 1, error)
            self._wait_to_place(model)
            return False
        return True

    @staticmethod
    def _wait_to_place(model: nn.Module) -> None:
        """That an adapter is unplaced is no mistake until the next calibration ends."""
        for name in active_adapters(model):
            for layer in adapter_in(model, name).layers.values():
                layer.calibrating = True

    def _begin(self, model: nn.Module, optimizer: Any, batches: Callable[[], list[Any]]) -> None:
        """Place what is unplaced, and prepare the events; `batches` are read where there is need of them."""
        args, state = self._trainer.args, self._trainer.state
        loss_fn = self.loss_fn or loss_of(self._trainer)
        names = active_adapters(model)
        if not names:
            raise CalibrationError(
                "the trained model has no active localora adapter, so LocalizationCallback has nothing to place; call "
                "get_peft_model(model, CpsLoraConfig(...)) first, or leave the callback out"
            )
        for name in names:
            adapter = adapter_in(model, name)
            if any(layer.is_unplaced(name) for layer in adapter.layers.values()):
                with random_state_kept(), _autocast(args):
                    report = calibrate(model, batches(), self.steps, loss_fn, adapter_name=name, progress=self.progress)
                self.reports[name] = report
                log(self._trainer, CALIBRATION, name, report.numbers())
                show(self._trainer, CALIBRATION, adapter)
        for name in names:
            config = adapter_in(model, name).config
            with random_state_kept():  # batches are read
                self.repartitioners[name] = Repartitioner(
                    model,
                    optimizer,
                    state.max_steps,
                    batches() if config.repartition or config.repartition_every else [],
                    steps=self.steps,
                    loss_fn=loss_fn,
                    adapter_name=name,
                    done_steps=state.global_step,
                    placed_late=name in self.reports,
                )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for name, repartitioner in self.repartitioners.items():
            with random_state_kept() if state.global_step in repartitioner.due else nullcontext(), _autocast(args):
                event = repartitioner.at(state.global_step)
            if event is not None:
                log(self._trainer, EVENT, name, event.to_dict())
                show(self._trainer, EVENT, repartitioner.adapter)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for repartitioner in self.repartitioners.values():
            repartitioner.finish(state.global_step)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Python's, NumPy's and torch's generators are, after the body, as they were before it."""
    python, numpy_state = random.getstate(), np.random.get_state()
    # Of this process's own GPU: to ask for the state of another would start a context on it.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def _autocast(args: TrainingArguments) -> Any:
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return torch.autocast(args.device.type, dtype=dtype) if dtype else nullcontext()
