"""Re-partition on a schedule: when, from which signal, and what each event did.

A schedule is a list of fractions of training, or "every N steps"; with `settle`, a layer whose new partition agrees
with its present one to that adjusted Rand index is left alone.

The gradient signal is observed at the event itself, on a fixed set of the run's batches, rather than accumulated over
the steps before it: an event is then a function of the model and the batches alone, so a run that resumes from a
checkpoint repeats it bit for bit, and it is the same under any gradient accumulation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from torch import nn

from localora.placement.agreement import adjusted_rand_index
from localora.placement.partition import Placement
from localora.tuner.calibration import adapter_config
from localora.tuner.distributed import check_agreement
from localora.tuner.layer import LocalizedLinear
from localora.tuner.model import adapted_layers
from localora.tuner.passes import LossFn, Passes
from localora.tuner.planning import Proposal, partition_of, propose
from localora.tuner.repartition import STILL, Move, carry_residuals, move_layer, worst_state

logger = logging.getLogger(__name__)


class ScheduleError(RuntimeError):
    """A scheduled re-partition that cannot happen, or that did not happen."""


@dataclass(frozen=True)
class RepartitionEvent:
    """One event, summed over layers.

    Attributes:
        step: optimizer steps done when it happened.
        rows_moved, cols_moved: over all layers. layers_moved, layers: how many layers changed, of how many.
        captured_before, captured_after: mean over layers of what the old and the new partition capture: share of the
            signal's energy (CPS-LoRA) or of the Taylor importance (G-LoRA).
        delta_change: largest relative change of a layer's dW caused by the move; 0 where the residual is carried.
        carry_rank: rank of the frozen term that holds the residuals.
        loss_before, loss_after: on the same batch.
        state: worst case over layers, see :class:`localora.tuner.repartition.Move`.
        seconds: the whole event.
    """

    step: int
    rows_moved: int
    cols_moved: int
    layers_moved: int
    layers: int
    captured_before: float
    captured_after: float
    delta_change: float
    carry_rank: int
    loss_before: float
    loss_after: float
    state: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        carried = f" (residual carried, rank {self.carry_rank})" if self.carry_rank else ""
        return (
            f"re-partition at step {self.step}: {self.layers_moved} of {self.layers} layers, {self.rows_moved} rows "
            f"and {self.cols_moved} columns moved, captured {self.captured_before:.1%} -> {self.captured_after:.1%}, "
            f"dW changed by up to {self.delta_change:.1%}{carried}, loss {self.loss_before:.4f} -> "
            f"{self.loss_after:.4f}, optimizer state {self.state}, {self.seconds:.1f} s"
        )


class Repartitioner:
    """Re-places an adapter at the scheduled steps of any training loop; in a Trainer, LocalizationCallback does it.

        repartitioner = Repartitioner(model, optimizer, total_steps, batches)
        for batch in loader:
            model(**batch).loss.backward(); optimizer.step(); optimizer.zero_grad()
            repartitioner.step()

    Args:
        model: a PEFT model whose adapter is placed.
        optimizer: its state of what stays is carried along. None: there is none.
        total_steps: optimizer steps of the whole training; fractions in the config refer to it.
        batches: what each event observes. At most `steps` of them are read, at once, and kept: a data loader that
            shuffles anew every epoch would give other batches to a run that resumes than to one that did not stop.
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
        movable = any(x.localized_layout[self.name].budget.has_choice for _, x in adapted_layers(model, self.name))
        steps_due = self.config.repartition_steps(total_steps) if movable else []
        self.due = [step for step in steps_due if step > done_steps]
        self.batches = list(islice(batches, steps)) if self.due else []
        self.events: list[RepartitionEvent] = []

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
                f"the re-partition scheduled after step {self.due[0]} did not happen and {done_steps} steps are done; "
                "call Repartitioner.step() after every optimizer step"
            )
        self.due.pop(0)
        event = self._event()
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
        missed = [step for step in self.due if step <= self.done_steps]
        if missed:
            raise ScheduleError(
                f"training has ended, but the re-partitions scheduled after steps {missed} never happened"
            )
        if self.due:
            logger.warning("training ended at step %d, before the re-partitions at %s", self.done_steps, self.due)

    def _event(self) -> RepartitionEvent:
        started = time.perf_counter()
        layers = {
            key: layer
            for key, layer in adapted_layers(self.model, self.name)
            if layer.localized_layout[self.name].budget.local
        }
        passes = Passes(self.model, self.batches, len(self.batches), self.loss_fn)
        loss_before = passes.first_loss()
        proposals = propose(passes, layers, self.name, self.config)
        moves = {key: self._move(layer, proposals[key]) for key, layer in layers.items()}
        if self.config.carry_residual:
            self.config.carry_rank = carry_residuals(layers, self.name, moves)
        check_agreement(Placement.digest_of(partition_of(layer, self.name) for layer in layers.values()))
        return RepartitionEvent(
            step=self.done_steps,
            rows_moved=sum(move.rows for move in moves.values()),
            cols_moved=sum(move.cols for move in moves.values()),
            layers_moved=sum(move is not STILL for move in moves.values()),
            layers=len(layers),
            captured_before=_mean(proposal.captured_before for proposal in proposals.values()),
            captured_after=_mean(
                p.captured_before if moves[key] is STILL else p.captured_after for key, p in proposals.items()
            ),
            delta_change=0.0 if self.config.carry_residual else max(move.delta_change for move in moves.values()),
            carry_rank=self.config.carry_rank,
            loss_before=loss_before,
            loss_after=passes.first_loss(),
            state=worst_state([move.state for move in moves.values()]),
            seconds=time.perf_counter() - started,
        )

    def _move(self, layer: LocalizedLinear, proposal: Proposal) -> Move:
        old = partition_of(layer, self.name)
        agreement = min(
            adjusted_rand_index(old.row_labels, proposal.partition.row_labels),
            adjusted_rand_index(old.col_labels, proposal.partition.col_labels),
        )
        # A settled layer, or a proposal that captures no more than what is there, is no reason to move.
        if agreement >= self.config.settle or proposal.captured_after <= proposal.captured_before:
            return STILL
        return move_layer(layer, self.name, proposal.partition, self.optimizer, self.config.carry_residual)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
