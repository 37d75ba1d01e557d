"""What calibration found, per layer: for reading, for pictures, and for the run record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from localora.placement.partition import Partition


@dataclass(frozen=True)
class LayerReport:
    """One layer's placement.

    Attributes:
        importance_share: share of the Taylor importance inside the block, on the last calibration batch (G-LoRA).
        captured_energy: share of the gradient's energy that the clusters' rank-r terms can hold (CPS-LoRA).
        subspace_correlation: 0 if the clusters' subspaces are orthogonal, 1 if they are the same (CPS-LoRA).
        seconds: planning time of the layer, without the forward and backward passes.
    """

    name: str
    partition: Partition
    importance_share: float | None = None
    captured_energy: float | None = None
    subspace_correlation: float | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the labels."""
        return {
            "name": self.name,
            "shape": [self.partition.m, self.partition.n],
            "row_sizes": list(self.partition.row_sizes),
            "col_sizes": list(self.partition.col_sizes),
            "importance_share": self.importance_share,
            "captured_energy": self.captured_energy,
            "subspace_correlation": self.subspace_correlation,
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class CalibrationReport:
    """All layers of one adapter, the mean loss of the calibration batches, and the seconds it took in all."""

    method: str
    layers: tuple[LayerReport, ...]
    batches: int
    loss: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "method": self.method,
            "batches": self.batches,
            "loss": self.loss,
            "seconds": round(self.seconds, 3),
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def __str__(self) -> str:
        lines = [
            f"{self.method}: {len(self.layers)} layers placed from {self.batches} batches in {self.seconds:.1f} s "
            f"(loss {self.loss:.3f})"
        ]
        for layer in self.layers:
            p = layer.partition
            facts = [
                f"{p.m} x {p.n}",
                f"rows {'+'.join(map(str, p.row_sizes))}",
                f"columns {'+'.join(map(str, p.col_sizes))}",
            ]
            if layer.importance_share is not None:
                facts.append(f"importance inside {layer.importance_share:.1%}")
            if layer.captured_energy is not None:
                facts.append(f"energy captured {layer.captured_energy:.1%}")
            if layer.subspace_correlation is not None:
                facts.append(f"correlation {layer.subspace_correlation:.2f}")
            lines.append(f"  {layer.name}: {', '.join(facts)}")
        return "\n".join(lines)
