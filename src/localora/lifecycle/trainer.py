"""The Trainer that calls a callback: its own loss on a batch, its first step, and its trackers."""

from __future__ import annotations

import colorsys
import inspect
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerState

from localora.adapter.status import AdapterLayers
from localora.lifecycle.passes import CalibrationError, LossFn
from localora.placement.partition import Partition

if TYPE_CHECKING:  # slow to import; where a Trainer calls, it is imported already
    from transformers import Trainer

WIDTH, HEIGHT, GAP = 256, 6, 8  # pixels: rows or columns of a layer, a layer, between rows and columns
UNCOVERED = (40, 40, 40)
GOLDEN = 0.618034  # of the circle of hues: any few clusters in a row differ


def calling_trainer(state: TrainerState) -> Trainer:
    """The Trainer whose state this is, and which called one of its callbacks.

    Callbacks are not told of it: among what they are given nothing leads back to it, so the call stack is asked.

    Raises:
        CalibrationError: no Trainer called.
    """
    from transformers import Trainer

    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer) and owner.state is state:
            return owner
        frame = frame.f_back
    raise CalibrationError(
        "LocalizationCallback is not called by a transformers Trainer. Where there is one, use "
        "LocalizationCallback.for_trainer(trainer); in another loop, localora.calibrate(model, batches, loss_fn=...) "
        "and localora.Repartitioner"
    )


def makes_its_batches(trainer: Trainer) -> bool:
    """Whether what its loss gets is made in the training step, as GRPO's completions, and not by the data loader."""
    from transformers import Trainer

    return type(trainer)._prepare_inputs is not Trainer._prepare_inputs


def loss_of(trainer: Trainer) -> LossFn:
    """(model, batch) -> the loss that `trainer` trains on. Leaves the trainer, and its metrics, as they were."""
    from transformers import Trainer

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        kept = {key: deepcopy(value) if key == "_metrics" else value for key, value in vars(trainer).items()}
        try:
            # Trainer's own preparation, since one that makes its batches has made this one; it copies the dict, which
            # some losses change.
            loss = trainer.compute_loss(model, Trainer._prepare_inputs(trainer, batch))
        finally:
            vars(trainer).update(kept)
        assert isinstance(loss, Tensor)  # a pair only with return_outputs=True
        return loss

    return loss_fn


def before_training_losses(trainer: Trainer, do: Callable[[Any], bool]) -> None:
    """Call `do` with the prepared batch before each loss of training, until it gives True."""
    compute_loss = trainer.compute_loss

    def watched(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():  # an evaluation may come before the first step
            trainer.compute_loss = compute_loss  # type: ignore[method-assign]
            if not do(inputs):
                trainer.compute_loss = watched  # type: ignore[method-assign]
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched  # type: ignore[method-assign]


def log(trainer: Trainer, what: str, adapter: str, values: Mapping[str, Any]) -> None:
    """Into the log history, as `{what: values}`, and its numbers to the trackers, as `what/adapter/key`.

    Not by `Trainer.log`: TRL's add the metrics gathered since the last log, and begin to gather anew.
    """
    history: list[Any] = trainer.state.log_history  # it holds more than the floats that transformers says
    history.append({what: dict(values), "adapter": adapter, "step": trainer.state.global_step})
    scalars = {f"{what}/{adapter}/{key}": value for key, value in values.items() if isinstance(value, int | float)}
    due = trainer.control.should_log  # of the training loss, at this step; the handler takes it as done
    trainer.callback_handler.on_log(trainer.args, trainer.state, trainer.control, scalars)
    trainer.control.should_log = due


def show(trainer: Trainer, what: str, adapter: AdapterLayers) -> None:
    """A picture of the labels to TensorBoard, where the trainer logs to it."""
    writers = [getattr(callback, "tb_writer", None) for callback in trainer.callback_handler.callbacks]
    placed = adapter.with_choice()
    for writer in writers:
        if writer is not None and placed.layers:
            partitions = [placed.partition(key) for key in placed.layers]
            tag = f"train/{what}/{adapter.name}/labels"  # where transformers puts the numbers
            writer.add_image(tag, labels_picture(partitions), trainer.state.global_step)


def labels_picture(partitions: Iterable[Partition]) -> Tensor:
    """uint8 `(3, layers * HEIGHT, 2 * WIDTH + GAP)`: a stripe a layer, rows left and columns right.

    A colour a cluster, grey what the local term does not cover.
    """
    stripes = []
    for partition in partitions:
        gap = torch.full((3, GAP), 255, dtype=torch.uint8)
        stripe = torch.cat([_colours(partition.row_labels), gap, _colours(partition.col_labels)], dim=1)
        stripes.append(stripe[:, None].expand(3, HEIGHT, -1))
    return torch.cat(stripes, dim=1)


def _colours(labels: Tensor) -> Tensor:
    """uint8 `(3, WIDTH)`: the label nearest to each pixel."""
    labels = labels.long()
    hues = [colorsys.hsv_to_rgb(k * GOLDEN % 1, 0.75, 0.95) for k in range(int(labels.max()) + 1)]
    colours = torch.tensor([UNCOVERED, *([round(255 * part) for part in rgb] for rgb in hues)], dtype=torch.uint8)
    shown = labels[torch.arange(WIDTH) * len(labels) // WIDTH]
    return colours[shown + 1].T
