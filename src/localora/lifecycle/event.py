"""What one event did, in numbers, and the error of one that cannot happen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from localora.errors import LocaloraError


class ScheduleError(LocaloraError, RuntimeError):
    """A scheduled event that cannot happen, or that did not happen."""


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
