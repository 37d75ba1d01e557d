"""The Trainer that calls a callback: its own loss on a batch, its first step, and its trackers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerState

from localora.lifecycle.passes import CalibrationError, Layers, LossFn
from localora.lifecycle.picture import labels_picture
from localora.lifecycle.planning import partition_of

if TYPE_CHECKING:  # slow to import; where a Trainer calls, it is imported already
    from transformers import Trainer


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
        with _attributes_kept(trainer):
            # Trainer's own preparation, since one that makes its batches has made this one; it copies the dict, which
            # some losses change.
            loss = trainer.compute_loss(model, Trainer._prepare_inputs(trainer, batch))
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


def show(trainer: Trainer, what: str, adapter: str, layers: Layers) -> None:
    """A picture of the labels to TensorBoard, where the trainer logs to it."""
    writers = [getattr(callback, "tb_writer", None) for callback in trainer.callback_handler.callbacks]
    placed = [layer for layer in layers.values() if layer.localized_layout[adapter].budget.has_choice]
    for writer in writers:
        if writer is not None and placed:
            partitions = [partition_of(layer, adapter) for layer in placed]
            tag = f"train/{what}/{adapter}/labels"  # where transformers puts the numbers
            writer.add_image(tag, labels_picture(partitions), trainer.state.global_step)


@contextmanager
def _attributes_kept(trainer: Trainer) -> Iterator[None]:
    kept = {key: deepcopy(value) if key == "_metrics" else value for key, value in vars(trainer).items()}
    try:
        yield
    finally:
        vars(trainer).update(kept)
