"""Forward and backward passes over a fixed set of batches, with observers on the adapted layers' frozen weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from localora.adapter.layer import LocalizedLinear
from localora.arguments import check_batches
from localora.errors import LocaloraError
from localora.lifecycle.observe import Observer, watch_gradients
from localora.lifecycle.processes import failing_together

LossFn = Callable[[nn.Module, Any], Tensor]
Layers = dict[str, LocalizedLinear]
CHECK_BATCH = "check the batch for empty labels and the model for overflow (try bfloat16 or float32 instead of float16)"


class CalibrationError(LocaloraError, RuntimeError):
    """Calibration cannot tell where the adapter should act; the message says why and what to do."""


class ZeroGradientError(CalibrationError):
    """The batches have a loss, but nothing to learn from: its gradient is zero on every layer."""


class Passes:
    """The batches a placement is decided on, and the losses met on them.

    Args:
        batches: at most `steps` are read and kept; tensors in dicts are moved to the model's device.
        loss_fn: (model, batch) -> scalar loss; default `model(**batch).loss`, or the first output.

    Raises:
        CalibrationError: there are no batches.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any], steps: int, loss_fn: LossFn | None = None) -> None:
        self.model = model
        with failing_together():
            check_batches("calibrate", batches)
            self.batches = [_to_device(batch, model) for batch in islice(batches, steps)]
            if not self.batches:
                raise CalibrationError("calibration got no batches: the data set is empty, or its iterator is used up")
        self.loss_fn = loss_fn or _default_loss
        self.progress: Callable[[int], None] | None = None  # called with the number of passes done after each one
        self.losses: list[float] = []

    def run(self, observers: Mapping[LocalizedLinear, Observer], batches: list[Any]) -> None:
        """One backward pass a batch; `observers` are called with each layer's x `(T, n)` and g `(T, m)`.

        Meanwhile no parameter is trained, and an unplaced adapter is no mistake.

        Raises:
            CalibrationError: a batch without label tokens, or a loss that is not a finite scalar.
        """
        by_module = {layer.get_base_layer(): observer for layer, observer in observers.items()}
        # All layers, since another adapter may be active as well, and still wait for its own placement.
        calibrated = [module for module in self.model.modules() if isinstance(module, LocalizedLinear)]
        for layer in calibrated:
            layer.calibrating = True
        try:
            with failing_together(), watch_gradients(self.model, by_module) as freeze, torch.enable_grad():
                for number, batch in enumerate(batches, start=1):
                    loss = self._loss(batch, number)
                    if not loss.requires_grad:
                        raise CalibrationError(
                            f"the loss of calibration batch {number} has no gradient: it was detached, or made under "
                            "no_grad"
                        )
                    freeze()
                    loss.backward()
                    self.losses.append(float(loss.detach()))
                    if self.progress:
                        self.progress(len(self.losses))
        finally:
            for layer in calibrated:
                layer.calibrating = False

    def first_loss(self, remedy: str) -> float:
        """The loss of the first batch as the model is now, without dropout. Raises as :meth:`run`, with `remedy`."""
        with evaluating(self.model), failing_together():
            return float(self._loss(self.batches[0], 1, remedy))

    def _loss(self, batch: Any, number: int, remedy: str = CHECK_BATCH) -> Tensor:
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if isinstance(labels, Tensor) and labels.numel() and bool((labels == -100).all()):
            raise CalibrationError(
                f"calibration batch {number} has no label tokens: every label is -100. Raise the maximum length, or "
                "drop examples whose completion is cut off"
            )
        if self.loss_fn is _default_loss and not isinstance(batch, Mapping):
            raise CalibrationError(
                f"calibration batch {number} is of type {type(batch).__name__}; it must be a dict that the model takes "
                "as keyword arguments, such as input_ids and labels, or pass a loss_fn of (model, batch)"
            )
        # A compiled model has no place for observers. Without one, what a loss compiles, as flex attention, stays so.
        with torch.compiler.set_stance("force_eager") if _is_compiled(self.model) else nullcontext():
            loss = self.loss_fn(self.model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            if self.loss_fn is _default_loss:
                raise CalibrationError(
                    "the model returned no scalar loss for a calibration batch; give it labels, or pass a loss_fn of "
                    "(model, batch)"
                )
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise CalibrationError(f"loss_fn must return a scalar tensor; for calibration batch {number} it gave {got}")
        if not torch.isfinite(loss).all():
            raise CalibrationError(f"the loss of calibration batch {number} is {loss.item()}; {remedy}")
        return loss


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards each module has the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile(...)` or `.compile()` was asked for it, or for a part of it."""
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())


def _default_loss(model: nn.Module, batch: Any) -> Any:
    output = model(**batch)
    return output.get("loss") if isinstance(output, Mapping) else output[0]


def _to_device(batch: Any, model: nn.Module) -> Any:
    if not isinstance(batch, Mapping):
        return batch
    device = next(model.parameters()).device
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
