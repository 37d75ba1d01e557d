"""When events happen: after fractions of training, or every N steps, in any loop; and whether they can.

What happens at one is `repartition.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

from torch import Tensor, nn

from localora.adapter.expert import Expert
from localora.adapter.saved_layers import expected_shapes
from localora.adapter.status import AdapterLayers
from localora.adapter.zero import whole_shape
from localora.arguments import check_batches, check_callable, check_count, check_model
from localora.errors import ScheduleError
from localora.lifecycle.calibration import find_adapter
from localora.lifecycle.optimizer_state import check_forgettable
from localora.lifecycle.passes import Layers, LossFn, Passes
from localora.lifecycle.repartition import RepartitionEvent, event, live_rank

logger = logging.getLogger(__name__)


class Repartitioner:
    """Does an adapter's events at the scheduled steps of any training loop; in a Trainer, LocalizationCallback does.

        repartitioner = Repartitioner(model, optimizer, total_steps, batches)
        for batch in loader:
            model(**batch).loss.backward()
            optimizer.step(); optimizer.zero_grad()
            repartitioner.step()

    Args:
        model: a PEFT model whose adapter is placed.
        optimizer: whose state of the adapter's factors is dropped at an event. None: there is none.
        total_steps: optimizer steps of the whole training; fractions in the config refer to it.
        batches: what each event observes, and takes its losses on. At most `steps` of them are read, at once, and kept:
            a data loader that shuffles anew every epoch would give other batches to a run that resumes than to one that
            did not stop.
        steps: batches to observe at an event that plans; others look at one.
        loss_fn: as in :func:`localora.calibrate`.
        adapter_name: default the active adapter.
        done_steps: optimizer steps done already, when training resumes.
        placed_late: the adapter was placed after these steps only, so that events before them are left out; else an
            adapter that holds none of them is one whose frozen term was lost.

    Raises:
        ArgumentError: an argument of another kind.
        ScheduleError: there are events to come that could not happen, see :func:`check_possible`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any | None,
        total_steps: int,
        batches: Iterable[Any],
        *,
        steps: int = 8,
        loss_fn: LossFn | None = None,
        adapter_name: str | None = None,
        done_steps: int = 0,
        placed_late: bool = False,
    ) -> None:
        check_model("Repartitioner", model)
        check_count("Repartitioner", "total_steps", total_steps)
        check_count("Repartitioner", "steps", steps)
        check_count("Repartitioner", "done_steps", done_steps, least=0)
        check_batches("Repartitioner", batches)
        check_callable("Repartitioner", "loss_fn", loss_fn, "(model, batch) -> loss")
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.adapter = find_adapter(model, adapter_name)
        config = self.adapter.config
        self.done_steps = done_steps
        self.scheduled = config.repartition_steps(total_steps)
        self.due = [step for step in self.scheduled if step > done_steps]
        if len(self.due) < len(self.scheduled) and not (config.consolidated_rank or placed_late):
            raise ScheduleError(
                f"{done_steps} steps are done, and an event was scheduled after step {self.scheduled[0]}, but the "
                "adapter holds nothing of what was learned before it: its frozen term was not loaded. Make the model "
                "by PeftModel.from_pretrained(base, CHECKPOINT, is_trainable=True), then resume; or, if it was trained "
                "without events so far, schedule later ones"
            )
        self.batches = list(islice(batches, steps)) if self.due else []
        if self.due and not self.batches:
            raise ScheduleError("events are due, and there are no batches for them to look at; give Repartitioner some")
        self.events: list[RepartitionEvent] = []
        if self.scheduled:
            check_possible(model, self.adapter, optimizer)
            if config.frozen == "merged":  # what was loaded lies beside the base weights
                for layer in self.adapter.layers.values():
                    layer.fold(self.adapter.name, live_rank(self.adapter))

    def step(self) -> RepartitionEvent | None:
        """Call after every optimizer step; returns the event if one was due."""
        return self.at(self.done_steps + 1)

    def at(self, done_steps: int) -> RepartitionEvent | None:
        """The same with the number of optimizer steps done given."""
        self.done_steps = done_steps
        if not self.due or self.due[0] > done_steps:
            return None
        if self.due[0] < done_steps:
            raise ScheduleError(
                f"the event scheduled after step {self.due[0]} did not happen and {done_steps} steps are done; "
                "call Repartitioner.step() after every optimizer step"
            )
        passes = Passes(self.model, self.batches, len(self.batches), self.loss_fn)
        done = event(passes, self.adapter, self.optimizer, done_steps)
        self.due.pop(0)
        self.events.append(done)
        logger.info("%s", done)
        return done

    def finish(self, done_steps: int | None = None) -> None:
        """Check that every event up to the last step happened.

        Args:
            done_steps: optimizer steps done in all; default those that :meth:`step` or :meth:`at` was told of.

        Raises:
            ScheduleError: one did not.
        """
        self.done_steps = self.done_steps if done_steps is None else done_steps
        missed = [step for step in self.due if step <= self.done_steps]
        if missed:
            raise ScheduleError(f"training has ended, but the events scheduled after steps {missed} never happened")
        if self.due:
            logger.warning("training ended at step %d, before the events at %s", self.done_steps, self.due)


def check_possible(model: nn.Module, adapter: AdapterLayers, optimizer: Any) -> None:
    """Refuse, before any training is lost, what no event could handle.

    Raises:
        ScheduleError: factors that FSDP1 took apart, an optimizer that could not forget them, or base weights that
            `frozen="merged"` cannot add to.
    """
    factors: dict[str, nn.Parameter] = {}
    for key, layer in adapter.layers.items():
        shapes = expected_shapes(adapter.budget(key), 0)
        for own, parameter in layer.trained(adapter.name).items():
            shape = shapes[own.removeprefix("localized_").replace(f".{adapter.name}.", ".")]
            if whole_shape(parameter) != shape or not isinstance(parameter, nn.Parameter):
                raise ScheduleError(
                    f"the factors of {key} are no longer parameters of shape {shape}, but of {tuple(parameter.shape)}: "
                    "FSDP1 took them apart, so no event can start them anew. Train with FSDP2, DDP or DeepSpeed, or "
                    "without events (repartition=[], repartition_every=0)"
                )
            factors[f"{key}.{own}"] = parameter
    if optimizer is not None:
        check_forgettable(optimizer, factors)
    if adapter.config.frozen == "merged":
        _check_foldable(model, adapter.layers)


def _check_foldable(model: nn.Module, layers: Layers) -> None:
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for key, layer in layers.items():
        weight: Tensor | None = getattr(layer.get_base_layer(), "weight", None)
        reason = None
        quantized = layer.quantization_backend is not None and not isinstance(layer.get_base_layer(), Expert)
        if quantized or weight is None or not weight.dtype.is_floating_point:
            reason = "quantized, and rounding to its grid would change the function"
        elif hasattr(weight, "full_tensor") or weight.numel() != layer.in_features * layer.out_features:
            reason = "sharded over processes"
        elif uses.get(id(weight), 0) > 1:
            reason = "shared with another layer, which would change too"
        if reason:
            raise ScheduleError(f"frozen='merged' adds to base weights, but that of {key} is {reason}; use 'factors'")
