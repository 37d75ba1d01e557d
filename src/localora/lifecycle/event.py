"""What one re-partition did, in numbers, and the error of one that cannot happen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from localora.errors import LocaloraError


class ScheduleError(LocaloraError, RuntimeError):
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
        state: worst case over layers, see :class:`localora.lifecycle.repartition.Move`.
        settled: every layer's new partition agrees with its old one to the config's `settle`.
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
    settled: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        carried = f" (residual carried, rank {self.carry_rank})" if self.carry_rank else ""
        settled = ", settled" if self.settled else ""
        return (
            f"re-partition at step {self.step}: {self.layers_moved} of {self.layers} layers, {self.rows_moved} rows "
            f"and {self.cols_moved} columns moved, captured {self.captured_before:.1%} -> {self.captured_after:.1%}, "
            f"dW changed by up to {self.delta_change:.1%}{carried}, loss {self.loss_before:.4f} -> "
            f"{self.loss_after:.4f}, optimizer state {self.state}{settled}, {self.seconds:.1f} s"
        )
