"""The students: each an adapter of the library, at the same number of parameters for the same r."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from benchmarks.theory.tasks import Batch, Task
from peft import LoraConfig, PeftModel, get_peft_model
from sklearn.metrics import adjusted_rand_score
from torch import nn

from localora import CpsLoraConfig, GLoraConfig, calibrate, calibrate_from_update
from localora.adapter.config import LocalizedConfig
from localora.adapter.status import adapted_layers

CALIBRATION_BATCHES = 4
LORA_RATE = 3e-3  # of the LoRA whose update is clustered


@dataclass(frozen=True)
class Student:
    """How an adapter is built and placed.

    Attributes:
        key: its name in records.
        label: its name in tables and pictures.
        labels: "oracle" (the planted ones), "found" (by calibration, on gradients), "update" (in the update of a
            LoRA trained first), "random", or "none" (LoRA has nothing to place).
        options: of the config.
        counted: whether that LoRA's steps and training's together are those that the others have; else each has them.
    """

    key: str
    label: str
    labels: str
    options: dict[str, Any]
    method: type[LocalizedConfig] = CpsLoraConfig
    counted: bool = False

    def config(self, r: int, clusters: int, targets: list[str], steps: int) -> LocalizedConfig:
        """Scale 1 at every rank; K is the planted number of blocks, except for LoRA."""
        options = dict(self.options)
        if self.method is CpsLoraConfig:
            options = {"clusters": clusters, **options}
        return self.method(
            r=r,
            alpha=float(r),
            target_modules=list(targets),
            placement="random" if self.labels == "random" else "calibrate",
            **options,
        )


STUDENTS = {
    student.key: student
    for student in (
        Student("lora", "LoRA", "none", {"clusters": 1}),
        Student("g-lora", "G-LoRA", "found", {}, GLoraConfig),
        Student("cps-oracle", "CPS-LoRA, oracle labels", "oracle", {}),
        Student("cps-found", "CPS-LoRA, found labels", "found", {}),
        Student("cps-update", "CPS-LoRA, labels of a LoRA's update", "update", {}),
        Student("cps-update-counted", "CPS-LoRA, of an update, its steps counted", "update", {}, counted=True),
        Student("cps-random", "CPS-LoRA, random labels", "random", {}),
        Student("cps-free", "CPS-LoRA, found, balance 0", "found", {"balance": 0.0}),
        Student("hybrid", "hybrid, found labels", "found", {"global_share": 0.5}),
    )
}


@dataclass(frozen=True)
class Trained:
    """What became of a student: its error, and how far its labels agree with the planted ones."""

    error: float
    parameters: int
    agreement: float | None


def train(task: Task, student: Student, r: int, seed: int, lr: float, steps: int) -> Trained:
    """Adam with a warm-up and a cosine to zero; one fresh batch a step."""
    if student.counted:
        steps = round(steps / 2)
    torch.manual_seed(seed)
    config = student.config(r, task.clusters, task.targets, steps)
    model = get_peft_model(task.base(), config)  # type: ignore[arg-type]
    _place(task, student, model, task.batches(seed + 1), steps)
    agreement = _agreement(task, student, model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_lr(step, steps))
    model.train()
    for batch in islice(task.batches(seed), steps):
        _step(model, batch, optimizer)
        schedule.step()
    return Trained(
        error=task.error(model),
        parameters=sum(p.numel() for p in parameters),
        agreement=agreement,
    )


def _step(model: PeftModel, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    model(**batch)["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()


def _share_of_lr(step: int, steps: int) -> float:
    warm_up = 0.05 * steps
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def _place(task: Task, student: Student, model: PeftModel, batches: Iterator[Batch], steps: int) -> None:
    if student.labels == "oracle":
        for name, layer in adapted_layers(model, "default"):
            layer.place("default", task.planted(name))
    elif student.labels == "update":
        config = model.peft_config["default"]
        assert isinstance(config, CpsLoraConfig)
        with tempfile.TemporaryDirectory() as folder:
            _train_lora(task, 2 * config.clusters * config.r, islice(batches, steps), Path(folder))
            calibrate_from_update(model, folder)
    elif student.labels == "found":
        calibrate(model, batches, CALIBRATION_BATCHES)


def _train_lora(task: Task, r: int, batches: Iterable[Batch], folder: Path) -> None:
    """A plain LoRA of PEFT's and of scale 1, trained by Adam at one rate on each batch once, and saved."""
    base = task.base()
    sides = [min(layer.weight.shape) for name, layer in base.named_modules() if isinstance(layer, nn.Linear)]
    rank = min(r, *sides)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(task.targets))
    model = get_peft_model(base, config)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LORA_RATE)
    model.train()
    for batch in batches:
        _step(model, batch, optimizer)
    model.save_pretrained(str(folder))


def _agreement(task: Task, student: Student, model: PeftModel) -> float | None:
    """Mean adjusted Rand index with the planted labels, over layers, rows and columns."""
    if student.labels == "none" or student.method is GLoraConfig:
        return None
    return sum(_indices(task, model)) / (2 * len(adapted_layers(model, "default")))


def _indices(task: Task, model: PeftModel) -> Iterator[float]:
    for name, layer in adapted_layers(model, "default"):
        found, planted = layer.local_partition("default"), task.planted(name)
        assert found is not None
        yield adjusted_rand_score(found.row_labels, planted.row_labels)
        yield adjusted_rand_score(found.col_labels, planted.col_labels)
