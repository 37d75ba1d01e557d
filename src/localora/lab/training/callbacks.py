"""What happens beside the steps: the held-out curve, the progress bar, the record kept up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from localora.lab.training.record import Curve, Point
from localora.lab.training.trainer import finite
from localora.lifecycle.processes import decide_once

HELD_OUT = "held_out_loss"  # its key in the Trainer's log history, which checkpoints keep


class HeldOutLoss(TrainerCallback):
    """Measures the loss on validation examples before the first step, at `points` even steps, and after the last."""

    def __init__(self, measure: Callable[[nn.Module], float], points: int) -> None:
        self.measure = measure
        self.points = points

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._log(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = {round(state.max_steps * point / self.points) for point in range(1, self.points + 1)}
        if state.global_step in due:
            self._log(state, kwargs["model"])

    def _log(self, state: TrainerState, model: nn.Module) -> None:
        where = f"on held-out examples at step {state.global_step}"
        loss = decide_once(lambda: finite(self.measure(model), where))
        state.log_history.append({HELD_OUT: loss, "step": state.global_step})


class OnSave(TrainerCallback):
    """Calls `keep(state)` after every checkpoint, so that the record on disk is never far behind."""

    def __init__(self, keep: Callable[[TrainerState], None]) -> None:
        self.keep = keep

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.keep(state)


class ProgressBar(TrainerCallback):
    """Steps done, the last training and held-out losses, time left."""

    def __init__(self, console: Console, label: str) -> None:
        self.label = label
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=state.max_steps, completed=state.global_step, losses="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        curve = curve_of(state)
        names = {"loss": curve.train, "held-out": curve.held_out}
        losses = ", ".join(f"{name} {points[-1].loss:.3f}" for name, points in names.items() if points)
        self.bar.update(self.task, completed=state.global_step, losses=losses)

    def close(self) -> None:
        """Stop drawing, also after an error."""
        self.bar.stop()


def curve_of(state: TrainerState) -> Curve:
    """The curve that a Trainer's log history holds; a resumed history starts where the first run did."""
    history = state.log_history
    return Curve(
        train=[Point(step=int(entry["step"]), loss=entry["loss"]) for entry in history if "loss" in entry],
        held_out=[Point(step=int(entry["step"]), loss=entry[HELD_OUT]) for entry in history if HELD_OUT in entry],
    )
