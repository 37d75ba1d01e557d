"""The Trainer, set up from a recipe, and stopped by a loss that is no longer a number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from localora.errors import LocaloraError
from localora.lab.recipe.schema import Recipe, RecipeError
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
            "(model.dtype: float32, training.precision: fp32)"
        )
    return loss


class CheckedTrainer(Trainer):
    """Looks at each loss before the optimizer uses its gradient, so the weights and checkpoints stay sound."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        total = loss.clone()
        sum_over_processes([total])  # so that they stop together, whoever met it
        if not math.isfinite(total.item()):
            raise TrainingError(
                f"the loss became {total.item()} at step {self.state.global_step + 1}; lower training.learning_rate "
                f"(now {self.args.learning_rate:g}), lengthen training.warmup, or train in float32 "
                "(model.dtype: float32, training.precision: fp32)"
            )
        return loss


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
            "training.batch_size", [f"{count} processes cannot share {training.batch_size} examples; use a multiple"]
        )
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=training.steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule if training.schedule != "constant" else "constant_with_warmup",
        warmup_steps=math.ceil(training.warmup * training.steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        per_device_train_batch_size=training.batch_size // count,
        gradient_accumulation_steps=training.gradient_accumulation,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        bf16=training.precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        seed=training.seed,
        save_steps=training.checkpoint_every,
        save_total_limit=1,
        logging_steps=math.ceil(training.steps / LOGGED_POINTS),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    trainer = CheckedTrainer(args=arguments, **parts)
    trainer.remove_callback(PrinterCallback)
    return trainer
