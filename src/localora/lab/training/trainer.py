"""The Trainer, set up from a recipe, and stopped by a loss that is no longer a number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.utils import get_total_norm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from localora.errors import LocaloraError
from localora.lab.recipe.schema import Recipe, RecipeError
from localora.lab.training.folder import TENSORBOARD
from localora.lifecycle.processes import processes, sum_over_processes

LOGGED_POINTS = 100  # at most so many points of the training loss in a record


class TrainingError(LocaloraError, RuntimeError):
    """Training cannot go on; the message names the remedy."""


def finite(loss: float, of: str) -> float:
    """The loss, if it is a number.

    Raises:
        TrainingError: it is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss {of} is {loss}; lower training.learning_rate, or compute in float32 "
            "(model.dtype: float32, training.precision: fp32; or `localora evaluate --dtype float32`)"
        )
    return loss


class CheckedTrainer(Trainer):
    """Stops at the first number that is none, before it can reach the weights or a checkpoint."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        total = loss.clone()
        sum_over_processes([total])  # so that they stop together, whoever met it
        if not math.isfinite(total.item()):
            self._stop(f"the loss became {total.item()}")
        return loss

    def check_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Before the optimizer uses them. A loss can be a number and its gradient none."""
        if not _all_finite([p.grad for p in parameters if p.grad is not None]):
            self._stop("the gradient became infinite or no number")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        assert isinstance(self.model, nn.Module)
        if not _all_finite([p.detach() for p in self.model.parameters() if p.requires_grad]):
            self._stop("the weights became infinite or no numbers", done=True)
        super().save_model(output_dir, _internal_call)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """None where a run is resumed that has all its steps: Trainer would train one more."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _stop(self, what: str, *, done: bool = False) -> NoReturn:
        raise TrainingError(
            f"{what} at step {self.state.global_step + (not done)}; lower training.learning_rate "
            f"(now {self.args.learning_rate:g}), lengthen training.warmup, or train in float32 "
            "(model.dtype: float32, training.precision: fp32)"
        )


class Guard(TrainerCallback):
    """What CheckedTrainer looks at between its own steps."""

    def __init__(self, trainer: CheckedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_training_stop = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.check_gradients(kwargs["model"].parameters())


def check_trackers(recipe: Recipe) -> None:
    """Before anything is loaded.

    Raises:
        RecipeError: a tracker that the recipe names is not installed.
    """
    missing = [name for name in recipe.training.report_to if find_spec(name) is None]
    if missing:
        raise RecipeError("training.report_to", *(f"{name} is not installed: pip install {name}" for name in missing))


def _all_finite(tensors: list[torch.Tensor]) -> bool:
    """The same answer on every process; one number is read off the device, whatever the number of tensors."""
    largest = get_total_norm([t for t in tensors if t.numel()], norm_type=math.inf)
    sum_over_processes([largest])
    return math.isfinite(largest.item())


def _activation_checkpointing() -> dict[str, Any]:
    """transformers' arguments for it, under the name that this version does not warn of."""
    name = (
        "activation_checkpointing"
        if hasattr(TrainingArguments, "activation_checkpointing")
        else "gradient_checkpointing"
    )
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def build_trainer(recipe: Recipe, checkpoints: Path, **parts: Any) -> CheckedTrainer:
    """A Trainer for `recipe`; `parts` are its model, train_dataset, data_collator and callbacks.

    Each process takes its share of a batch, so a step sees the same examples on any number of them.

    Raises:
        RecipeError: the processes cannot share a batch evenly.
    """
    training = recipe.training
    _, count = processes()
    if training.batch_size % count:
        raise RecipeError(
            "training.batch_size", f"{count} processes cannot share {training.batch_size} examples; use a multiple"
        )
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=training.steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule if training.schedule != "constant" else "constant_with_warmup",
        # The first step of a warm-up has rate 0, so that a run of one step would learn nothing with one.
        warmup_steps=min(math.ceil(training.warmup * training.steps), training.steps - 1),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        per_device_train_batch_size=training.batch_size // count,
        gradient_accumulation_steps=training.gradient_accumulation,
        **(_activation_checkpointing() if training.gradient_checkpointing else {}),
        bf16=training.precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        seed=training.seed,
        save_steps=training.checkpoint_every,
        logging_steps=math.ceil(training.steps / LOGGED_POINTS),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(training.report_to),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    trainer = CheckedTrainer(args=arguments, **parts)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):  # its own place goes with the checkpoints when the run has ended
            callback.logging_dir = str(checkpoints.parent / TENSORBOARD)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Guard(trainer))
    return trainer
