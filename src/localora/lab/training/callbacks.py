"""What happens beside the steps: the held-out curve, the steps told, the record kept up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from localora.lab.progress import Phase
from localora.lab.training.folder import RunFolder, remove
from localora.lab.training.lock import check_there
from localora.lab.training.record import Curve, Point
from localora.lab.training.seal import seal
from localora.lab.training.trainer import finite
from localora.lifecycle.processes import decide_once, failing_together, is_main_process

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
        points = min(self.points, state.max_steps)
        due = {round(state.max_steps * point / points) for point in range(1, points + 1)}
        if state.global_step in due:
            self._log(state, kwargs["model"])

    def _log(self, state: TrainerState, model: nn.Module) -> None:
        where = f"on held-out examples at step {state.global_step}"
        loss = decide_once(lambda: finite(self.measure(model), where))
        state.log_history.append({HELD_OUT: loss, "step": state.global_step})


class Checkpoints(TrainerCallback):
    """Ends each checkpoint, calls `keep(state)`, and only then lets the one before go. The last of the callbacks.

    A checkpoint is what Trainer and the other callbacks wrote; it counts once all of that is on the disk.
    """

    def __init__(self, folder: RunFolder, keep: Callable[[TrainerState], None]) -> None:
        self.folder, self.keep = folder, keep

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if is_main_process():
            check_there(self.folder.path)  # Trainer would make it anew

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        with failing_together():  # the others have written their part
            pass
        if is_main_process():
            checkpoint = self.folder.checkpoints / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            seal(checkpoint)
        self.keep(state)
        if is_main_process():
            for other in self.folder.checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                if other != checkpoint:
                    remove(other)


class Steps(TrainerCallback):
    """Tells a phase how many steps are done, and the last training and held-out losses."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.phase.total is None:  # what a method does at train begin is no step
            self.phase.tell(state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.phase.tell(state.global_step, state.max_steps, last_losses(state))


def last_losses(state: TrainerState) -> str:
    """`loss 1.230  held-out 1.310`, as far as they were measured."""
    curve = curve_of(state)
    names = {"loss": curve.train, "held-out": curve.held_out}
    return "  ".join(f"{name} {points[-1].loss:.3f}" for name, points in names.items() if points)


def curve_of(state: TrainerState) -> Curve:
    """The curve that a Trainer's log history holds; a resumed history starts where the first run did."""
    history = state.log_history
    return Curve(
        train=[Point(step=int(entry["step"]), loss=entry["loss"]) for entry in history if "loss" in entry],
        held_out=[Point(step=int(entry["step"]), loss=entry[HELD_OUT]) for entry in history if HELD_OUT in entry],
    )
