"""One event, partition and adapters in turn: look, consolidate, place, start anew; and what it did, in numbers.

Shape legend
    A, B   live factors, dense: (R, n), (m, R)       c   rank of the frozen term, the same in every layer

    look            the loss and, where labels can change, the gradient, on a fixed set of batches: nothing changes yet
    consolidate     frozen <- [frozen, live], (c + R, n) and (m, c + R): exactly, so the function does not change
    place           new labels of rows and columns: found, random, or kept
    start anew      factors as at creation (B = 0), and the optimizer's state of them dropped

Parameters stay the same objects, so optimizers, DDP and compiled graphs keep working. What is drawn is seeded by the
step: an event is a function of the model, the batches and the step alone, so a run that resumes needs nothing beside
its adapter and its optimizer. With nothing to place this is the known chain of LoRAs:

Lialin et al. 2023, ReLoRA: High-Rank Training Through Low-Rank Updates. https://arxiv.org/abs/2307.05695
Xia, Qin and Hazan 2024, Chain of LoRA. https://arxiv.org/abs/2401.04151
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from localora.adapter.factors import joined, whole
from localora.adapter.status import AdapterLayers, seed_of
from localora.adapter.zero import gathered
from localora.errors import ScheduleError
from localora.lifecycle.optimizer_state import forget
from localora.lifecycle.passes import Passes
from localora.lifecycle.planning import PLANNERS
from localora.lifecycle.processes import check_placement, decide_once, failing_together
from localora.lifecycle.report import LayerReport
from localora.placement.partition import Partition
from localora.placement.random import random_partition
from localora.placement.thin import padded, thin_norm, truncate_factors
from localora.placement.threads import one_thread

DIVERGED = "has training diverged? Lower the learning rate and resume from the last checkpoint before this step"


def event(passes: Passes, adapter: AdapterLayers, optimizer: Any | None, step: int) -> RepartitionEvent:
    """Do one event after `step` optimizer steps.

    Raises:
        ScheduleError: a factor is not finite, or the adapter is merged; nothing has changed then.
        CalibrationError: nor is the loss.
    """
    started, config = time.perf_counter(), adapter.config
    with failing_together():
        check_ready(adapter)
    loss_before = passes.first_loss(DIVERGED)
    placed = adapter.with_choice()
    old = {key: placed.partition(key) for key in placed.layers}
    proposals = _proposals(passes, placed, old, step)
    joined_norm, error = consolidate(adapter)
    for key, proposal in proposals.items():
        placed.layers[key].place(adapter.name, proposal.partition)
    start_anew(adapter, optimizer, step)
    check_placement(placed.partition(key) for key in placed.layers)
    moved = [_moved(old[key], proposal.partition) for key, proposal in proposals.items()]
    return RepartitionEvent(
        step=step,
        place=config.repartition_place if proposals else "none",
        rows_moved=sum(rows for rows, _ in moved),
        cols_moved=sum(cols for _, cols in moved),
        captured_before=_mean([_held_before(proposal) for proposal in proposals.values()]),
        captured_after=_mean([proposal.held for proposal in proposals.values()]),
        frozen_rank=config.consolidated_rank,
        joined_norm=joined_norm,
        recompression_error=error,
        loss_before=loss_before,
        loss_after=passes.first_loss(DIVERGED),
        seconds=time.perf_counter() - started,
    )


def _proposals(passes: Passes, placed: AdapterLayers, old: dict[str, Partition], step: int) -> dict[str, LayerReport]:
    """Each placed layer's next partition, beside what the present one holds."""
    if not placed.layers:
        return {}
    config = placed.config
    given = None if config.repartition_place == "found" else old
    if config.repartition_place == "random":
        given = {
            key: random_partition(p.m, p.n, placed.local_shape(key), seed_of(config.seed, step, key=key))
            for key, p in old.items()
        }
    return PLANNERS[config.planner].plan(passes, placed, old, given)


def check_ready(adapter: AdapterLayers) -> None:
    """Raise ScheduleError if a factor holds NaN or infinity, which nobody would want to keep, or is merged."""
    for key, layer in adapter.layers.items():
        if adapter.name in layer.merged_adapters:
            raise ScheduleError(
                f"an event is due, and {adapter.name!r} is merged into the base weights; call unmerge_adapter() first"
            )
        for parameter, factor in layer.trained(adapter.name).items():
            with gathered(factor):
                finite = bool(torch.isfinite(whole(factor.detach())).all())
            if not finite:
                raise ScheduleError(
                    f"{key}.{parameter} is no longer finite, so training has diverged and nothing is consolidated. "
                    "Lower the learning rate and resume from the last checkpoint before this step"
                )


@torch.no_grad()
@one_thread()
def consolidate(adapter: AdapterLayers) -> tuple[float, float]:
    """Let every layer's live update join its frozen term, and the config's `consolidated_rank` say so.

    All layers get the same rank, padded with zeros where they have less, so that one number gives the shapes at load.

    Returns:
        The Frobenius norm over all layers of what joined; the largest relative error by `frozen_rank`, or 0.
    """
    name, config, rank = adapter.name, adapter.config, live_rank(adapter)
    bound = config.frozen_rank if config.consolidated_rank + rank > config.frozen_rank else 0
    squares, errors = 0.0, [0.0]
    for layer in adapter.layers.values():
        A, B = layer.live_factors(name)
        squares += thin_norm(A.double(), B.double()) ** 2
        A, B = padded(A, B, rank)
        if config.frozen == "merged":
            layer.set_frozen(name, A, B)
            layer.fold(name, rank)
            continue
        frozen = layer.frozen_factors(name)
        if frozen is not None:
            A, B = joined(frozen, (A, B))
        if bound:
            device, both = A.device, (A.cpu(), B.cpu())  # one process's device is not another's
            A, B, error = decide_once(partial(_bounded, *both, bound))
            A, B = A.to(device), B.to(device)
            errors.append(error)
        layer.set_frozen(name, A, B)
    config.consolidated_rank = bound or config.consolidated_rank + rank
    return squares**0.5, max(errors)


def live_rank(adapter: AdapterLayers) -> int:
    """The largest rank of any layer's live update: what an event adds to the frozen term's."""
    return max(adapter.budget(key).dense_rank for key in adapter.layers)


def _bounded(A_cn: Tensor, B_mc: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest factors of at most this rank, and the relative change of their product."""
    A, B, error = truncate_factors(A_cn, B_mc, rank)
    return *padded(A, B, rank), error


def start_anew(adapter: AdapterLayers, optimizer: Any, step: int) -> None:
    """Factors as at creation, drawn from the seed, the step and the layer's name; the optimizer forgets them."""
    started: list[nn.Parameter] = []
    for key, layer in adapter.layers.items():
        layer.restart(adapter.name, seed_of(adapter.config.seed, step, key=key))
        for parameter in layer.trained(adapter.name).values():
            parameter.grad = None
            started.append(parameter)
    if optimizer is not None:
        forget(optimizer, started)


def _moved(old: Partition, new: Partition) -> tuple[int, int]:
    """Rows and columns that changed their label."""
    return int((old.row_labels != new.row_labels).sum()), int((old.col_labels != new.col_labels).sum())


def _held_before(proposal: LayerReport) -> float:
    assert proposal.held_before is not None  # an event has a placement before it
    return proposal.held_before


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class RepartitionEvent:
    """One event, over all layers.

    Attributes:
        step: optimizer steps done when it happened.
        place: how the new labels were chosen: found, random or kept; "none" where the adapter has no choice (LoRA).
        rows_moved, cols_moved: rows and columns that changed their label, over all layers.
        captured_before, captured_after: mean over layers of what the old and the new partition capture of the present
            gradient's energy (CPS-LoRA) or Taylor importance (G-LoRA); None where the adapter has no choice.
        frozen_rank: rank of the frozen term now.
        joined_norm: Frobenius norm, over all layers, of the update that joined it.
        recompression_error: largest relative change of a layer's frozen term by `frozen_rank`; 0: exact.
        loss_before, loss_after: on the same batch; the function has not changed, so they differ by rounding and
            recompression only.
        seconds: the whole event.
    """

    step: int
    place: str
    rows_moved: int
    cols_moved: int
    captured_before: float | None
    captured_after: float | None
    frozen_rank: int
    joined_norm: float
    recompression_error: float
    loss_before: float
    loss_after: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        moved = f"{self.rows_moved} rows and {self.cols_moved} columns moved ({self.place})"
        captured = (
            ""
            if self.captured_before is None or self.captured_after is None
            else f", captured {self.captured_before:.1%} -> {self.captured_after:.1%}"
        )
        bounded = f" (recompressed, error {self.recompression_error:.1e})" if self.recompression_error else ""
        return (
            f"event at step {self.step}: an update of norm {self.joined_norm:.3g} joined the frozen term, rank "
            f"{self.frozen_rank} now{bounded}; {moved}{captured}; loss {self.loss_before:.4f} -> "
            f"{self.loss_after:.4f}; {self.seconds:.1f} s"
        )
