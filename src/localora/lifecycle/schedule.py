"""Re-partition on a schedule: when, from which signal, and what is kept for a run that resumes.

A schedule is a list of fractions of training, or "every N steps" until settled: after an event at which every layer's
new partition agrees with its present one, to the adjusted Rand index `settle`, there are no more. At any event, a layer
that agrees so far is left alone.

By default the gradient is observed at the event itself, on a fixed set of the run's batches: an event is then a
function of the model and the batches alone. With `repartition_observe="training"` it is what the training steps since
the last event have shown, and that is part of a run's state.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from localora.adapter.config import CpsLoraConfig
from localora.adapter.model import adapted_layers
from localora.lifecycle.calibration import adapter_config
from localora.lifecycle.event import RepartitionEvent, ScheduleError
from localora.lifecycle.passes import LossFn, Passes
from localora.lifecycle.planning import partition_of, propose
from localora.lifecycle.processes import check_agreement, failing_together, processes
from localora.lifecycle.repartition import STILL, carry_residuals, move_layer, worst_state
from localora.lifecycle.resume import check_state, fingerprint
from localora.lifecycle.training_signal import TrainingSignal
from localora.placement.agreement import adjusted_rand_index
from localora.placement.partition import Partition, Placement

logger = logging.getLogger(__name__)


class Repartitioner:
    """Re-places an adapter at the scheduled steps of any training loop; in a Trainer, LocalizationCallback does it.

        repartitioner = Repartitioner(model, optimizer, total_steps, batches)
        for batch in loader:
            with repartitioner.observe():
                model(**batch).loss.backward()
            optimizer.step(); optimizer.zero_grad()
            repartitioner.step()

    Args:
        model: a PEFT model whose adapter is placed.
        optimizer: its state of what stays is carried along. None: there is none.
        total_steps: optimizer steps of the whole training; fractions in the config refer to it.
        batches: what each event observes, and takes its losses on. At most `steps` of them are read (one, where the
            gradient comes from training), at once, and kept: a data loader that shuffles anew every epoch would give
            other batches to a run that resumes than to one that did not stop.
        steps: batches to observe at an event.
        loss_fn: as in :func:`localora.calibrate`.
        adapter_name: default the active adapter.
        done_steps: optimizer steps done already, when training resumes.
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
    ) -> None:
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.name, self.config = adapter_config(model, adapter_name)
        self.done_steps = done_steps
        self.layers = {
            key: layer
            for key, layer in adapted_layers(model, self.name)
            if layer.localized_layout[self.name].budget.local
        }
        movable = any(layer.localized_layout[self.name].budget.has_choice for layer in self.layers.values())
        self.scheduled = self.config.repartition_steps(total_steps) if movable else []
        self.due = [step for step in self.scheduled if step > done_steps]
        self.settled = False
        self.signal = None
        if self.due and self.config.repartition_observe == "training":
            assert isinstance(self.config, CpsLoraConfig)  # the other config refuses it
            self.signal = TrainingSignal(self.layers, self.config)
        self.batches = list(islice(batches, 1 if self.signal else steps)) if self.due else []
        self.events: list[RepartitionEvent] = []

    @property
    def has_state(self) -> bool:
        """Whether an event depends on more than the model, the optimizer and the batches, so that a resumed run needs
        this object's state: what training has shown of the gradient, or that the partition has settled."""
        return bool(self.scheduled) and (
            self.config.repartition_observe == "training" or self.config.repartition_every > 0
        )

    def observe(self) -> AbstractContextManager[None]:
        """Put around every forward and backward pass of training; gradients stay what they are, up to rounding.

        Does nothing where the gradient is observed at the events themselves, or where no event is left.
        """
        return self.signal.observing() if self.signal else nullcontext()

    def step(self) -> RepartitionEvent | None:
        """Call after every optimizer step; returns the event if one was due."""
        return self.at(self.done_steps + 1)

    def at(self, done_steps: int) -> RepartitionEvent | None:
        """The same with the number of optimizer steps done given."""
        self.done_steps = done_steps
        if self.signal:
            self.signal.end_step()
        if not self.due or self.due[0] > done_steps:
            return None
        if self.due[0] < done_steps:
            raise ScheduleError(
                f"the re-partition scheduled after step {self.due[0]} did not happen and {done_steps} steps are done; "
                "call Repartitioner.step() after every optimizer step"
            )
        self.due.pop(0)
        event = self._event()
        self.events.append(event)
        logger.info("%s", event)
        if self.config.repartition_every and event.settled:
            self._settle()
        if not self.due:
            self.signal = None
        return event

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
            raise ScheduleError(
                f"training has ended, but the re-partitions scheduled after steps {missed} never happened"
            )
        if self.due:
            logger.warning("training ended at step %d, before the re-partitions at %s", self.done_steps, self.due)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the weights and the optimizer; take it after :meth:`step`."""
        return {
            "done_steps": torch.tensor(self.done_steps),
            "settled": torch.tensor(self.settled),
            "processes": torch.tensor(processes()[1]),
            "fingerprint": fingerprint(self.layers, self.name),
            **(self.signal.state_dict() if self.signal else {}),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from :meth:`state_dict`, in each process from its own, once the model's weights are loaded.

        Raises:
            ScheduleError: the state is of other weights, another model, other settings, or another number of processes.
        """
        with failing_together():
            done_steps = int(state.get("done_steps", torch.tensor(0)))
            if self.done_steps not in (0, done_steps):
                raise ScheduleError(
                    f"the saved state of the re-partition is of step {done_steps}, but training resumes after step "
                    f"{self.done_steps}; load the state of the same checkpoint as the weights"
                )
            self.done_steps = done_steps
            self.due = [step for step in self.due if step > done_steps]
            if bool(state.get("settled", False)):
                self._settle()
            if not self.due:
                self.signal = None
            check_state(state, self.state_dict())
        if self.signal:
            self.signal.load_state_dict(state)

    def _settle(self) -> None:
        if self.due:
            logger.info("the partition has settled; the re-partitions at steps %s are dropped", self.due)
        self.settled, self.due = True, []

    def _event(self) -> RepartitionEvent:
        started = time.perf_counter()
        passes = Passes(self.model, self.batches, len(self.batches), self.loss_fn)
        loss_before = passes.first_loss()
        accumulated = self.signal.take() if self.signal else None
        proposals = propose(passes, self.layers, self.name, self.config, accumulated)
        moves, agreements = {}, []
        for key, layer in self.layers.items():
            proposal = proposals[key]
            agreements.append(_agreement(partition_of(layer, self.name), proposal.partition))
            # A settled layer, or a proposal that captures no more than what is there, is no reason to move.
            still = agreements[-1] >= self.config.settle or proposal.captured_after <= proposal.captured_before
            moves[key] = (
                STILL
                if still
                else move_layer(layer, self.name, proposal.partition, self.optimizer, self.config.carry_residual)
            )
        if self.config.carry_residual:
            self.config.carry_rank = carry_residuals(self.layers, self.name, moves)
        check_agreement(Placement.digest_of(partition_of(layer, self.name) for layer in self.layers.values()))
        return RepartitionEvent(
            step=self.done_steps,
            rows_moved=sum(move.rows for move in moves.values()),
            cols_moved=sum(move.cols for move in moves.values()),
            layers_moved=sum(move is not STILL for move in moves.values()),
            layers=len(self.layers),
            captured_before=_mean(proposal.captured_before for proposal in proposals.values()),
            captured_after=_mean(
                p.captured_before if moves[key] is STILL else p.captured_after for key, p in proposals.items()
            ),
            delta_change=0.0 if self.config.carry_residual else max(move.delta_change for move in moves.values()),
            carry_rank=self.config.carry_rank,
            loss_before=loss_before,
            loss_after=passes.first_loss(),
            state=worst_state([move.state for move in moves.values()]),
            settled=min(agreements) >= self.config.settle,
            seconds=time.perf_counter() - started,
        )


def _agreement(old: Partition, new: Partition) -> float:
    return min(adjusted_rand_index(old.row_labels, new.row_labels), adjusted_rand_index(old.col_labels, new.col_labels))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
