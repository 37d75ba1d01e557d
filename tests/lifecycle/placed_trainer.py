"""A Trainer of a tiny Llama whose adapter LocalizationCallback places, and what of its run two runs must share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from localora import LocalizationCallback
from method_table import BY_NAME
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch


class Examples(Dataset[dict[str, Tensor]]):
    def __init__(self, size: int) -> None:
        self.batch = token_batch(examples=size)

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[index] for key, value in self.batch.items()}


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


def logged(made: Trainer) -> list[dict[str, Any]]:
    """The events in the trainer's own log history, without what the clock says."""
    entries: list[Any] = made.state.log_history
    events = [entry["repartition"] for entry in entries if "repartition" in entry]
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]
