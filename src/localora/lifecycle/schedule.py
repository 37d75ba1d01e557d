"""Events on a schedule: when they happen, in which order their parts come, and what they report.

A schedule is a list of fractions of training, or "every N steps". The gradient is observed at the event itself, on a
fixed set of the run's batches, and what is drawn is seeded by the step: an event is a function of the model, the
batches and the step alone, so a run that resumes needs nothing beside its adapter and its optimizer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

from torch import nn

from localora.adapter.layer import LocalizedLinear
from localora.adapter.model import adapted_layers
from localora.lifecycle.calibration import adapter_config
from localora.lifecycle.event import RepartitionEvent, ScheduleError
from localora.lifecycle.passes import LossFn, Passes
from localora.lifecycle.planning import Proposal, local_shape, partition_of, propose
from localora.lifecycle.processes import check_agreement, failing_together
from localora.lifecycle.repartition import check_finite, check_possible, consolidate, event_seed, live_rank, start_anew
from localora.lifecycle.rewarm import Rewarm
from localora.placement.partition import Partition, Placement
from localora.placement.random import random_partition

logger = logging.getLogger(__name__)

DIVERGED = "has training diverged? Lower the learning rate and resume from the last checkpoint before this step"


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

    Raises:
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
    ) -> None:
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.name, self.config = adapter_config(model, adapter_name)
        self.done_steps = done_steps
        self.layers = dict(adapted_layers(model, self.name))
        self.scheduled = self.config.repartition_steps(total_steps)
        self.due = [step for step in self.scheduled if step > done_steps]
        self.batches = list(islice(batches, steps)) if self.due else []
        if self.due and not self.batches:
            raise ScheduleError("events are due, and there are no batches for them to look at; give Repartitioner some")
        self.events: list[RepartitionEvent] = []
        self._rewarm: Rewarm | None = None
        if self.scheduled:
            check_possible(model, self.layers, self.name, self.config, optimizer)
            if self.config.frozen == "merged":  # what was loaded lies beside the base weights
                for layer in self.layers.values():
                    layer.fold(self.name, live_rank(self.layers, self.name))
            if self.config.rewarm and optimizer is not None:
                self._rewarm = Rewarm(optimizer, self._rate_factor)

    @property
    def placed(self) -> dict[str, LocalizedLinear]:
        """The layers whose labels decide anything; none of LoRA as a placement."""
        return {key: x for key, x in self.layers.items() if x.localized_layout[self.name].budget.has_choice}

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
        event = self._event()
        self.due.pop(0)
        self.events.append(event)
        logger.info("%s", event)
        return event

    def finish(self, done_steps: int | None = None) -> None:
        """Check that every event up to the last step happened.

        Args:
            done_steps: optimizer steps done in all; default those that :meth:`step` or :meth:`at` was told of.

        Raises:
            ScheduleError: one did not.
        """
        self.done_steps = self.done_steps if done_steps is None else done_steps
        if self._rewarm is not None:
            self._rewarm.close()
        missed = [step for step in self.due if step <= self.done_steps]
        if missed:
            raise ScheduleError(f"training has ended, but the events scheduled after steps {missed} never happened")
        if self.due:
            logger.warning("training ended at step %d, before the events at %s", self.done_steps, self.due)

    def _event(self) -> RepartitionEvent:
        started = time.perf_counter()
        passes = Passes(self.model, self.batches, len(self.batches), self.loss_fn)
        with failing_together():
            check_finite(self.layers, self.name)
        loss_before = passes.first_loss(DIVERGED)
        placed = self.placed
        old = {key: partition_of(layer, self.name) for key, layer in placed.items()}
        proposals = self._proposals(passes, placed, old)
        joined_norm, error = consolidate(self.layers, self.name, self.config)
        start_anew(self.layers, self.name, self.optimizer, self.config.seed, self.done_steps)
        for key, proposal in proposals.items():
            placed[key].place(self.name, proposal.partition)
        check_agreement(Placement.digest_of(partition_of(layer, self.name) for layer in placed.values()))
        moved = [_moved(old[key], proposal.partition) for key, proposal in proposals.items()]
        return RepartitionEvent(
            step=self.done_steps,
            place=self.config.repartition_place if placed else "none",
            rows_moved=sum(rows for rows, _ in moved),
            cols_moved=sum(cols for _, cols in moved),
            captured_before=_mean([proposal.captured_before for proposal in proposals.values()]),
            captured_after=_mean([proposal.captured_after for proposal in proposals.values()]),
            frozen_rank=self.config.consolidated_rank,
            joined_norm=joined_norm,
            recompression_error=error,
            loss_before=loss_before,
            loss_after=passes.first_loss(DIVERGED),
            seconds=time.perf_counter() - started,
        )

    def _proposals(
        self, passes: Passes, placed: dict[str, LocalizedLinear], old: dict[str, Partition]
    ) -> dict[str, Proposal]:
        if not placed:
            return {}
        given = None if self.config.repartition_place == "found" else old
        if self.config.repartition_place == "random":
            given = {key: self._random(key, layer) for key, layer in placed.items()}
        return propose(passes, placed, self.name, self.config, given)

    def _rate_factor(self) -> float:
        """Of the step to come: 1 / rewarm in the first after an event, 1 from the one numbered `rewarm` on."""
        last = max((step for step in self.scheduled if step <= self.done_steps), default=-self.config.rewarm)
        return min(1.0, (self.done_steps + 1 - last) / self.config.rewarm)

    def _random(self, key: str, layer: LocalizedLinear) -> Partition:
        seed = event_seed(self.config.seed, self.done_steps, key)
        return random_partition(layer.out_features, layer.in_features, local_shape(layer, self.name), seed)


def _moved(old: Partition, new: Partition) -> tuple[int, int]:
    """Rows and columns that changed their label."""
    return int((old.row_labels != new.row_labels).sum()), int((old.col_labels != new.col_labels).sum())


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
