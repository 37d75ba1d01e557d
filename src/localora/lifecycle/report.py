"""What calibration found, per layer: for reading, for pictures, and for the run record."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any

from localora.errors import listed
from localora.placement.partition import Partition


@dataclass(frozen=True)
class LayerReport:
    """One layer's placement.

    Attributes:
        importance_share: share of the Taylor importance inside the block, on the last calibration batch (G-LoRA).
        captured_energy: share of the gradient's energy that the clusters' rank-r terms can hold (CPS-LoRA).
        subspace_correlation: 0 if the clusters' subspaces are orthogonal, 1 if they are the same (CPS-LoRA).
        held_before: at an event, what the partition in use before holds of the same.
        seconds: planning time of the layer, without the forward and backward passes.
        at_random: whether no gradient said anything of it, such as of an expert that got no token.
    """

    name: str
    partition: Partition
    importance_share: float | None = None
    captured_energy: float | None = None
    subspace_correlation: float | None = None
    held_before: float | None = None
    seconds: float = 0.0
    at_random: bool = False

    @property
    def held(self) -> float:
        """Share of the importance, or of the gradient's energy, that the placement holds."""
        share = self.captured_energy if self.importance_share is None else self.importance_share
        assert share is not None  # each planner gives one of them
        return share

    @property
    def what_is_held(self) -> str:
        return "energy captured" if self.importance_share is None else "importance inside"

    @property
    def share_of_entries(self) -> float:
        """Of all entries of W, those whose row and column have the same label: so much of an even spread is held."""
        p = self.partition
        return sum(rows * cols for rows, cols in zip(p.row_sizes, p.col_sizes, strict=True)) / (p.m * p.n)

    def cells(self) -> list[str]:
        """Name, shape, sizes of rows and columns, and what is held, in words."""
        p = self.partition
        held = f"{self.held:.1%}"
        if self.subspace_correlation is not None:
            held += f" (correlation {self.subspace_correlation:.2f})"
        if self.at_random:
            held = "placed at random"
        return [self.name, f"{p.m} x {p.n}", "+".join(map(str, p.row_sizes)), "+".join(map(str, p.col_sizes)), held]

    def __str__(self) -> str:
        name, shape, rows, cols, held = self.cells()
        what = "" if self.at_random else f"{self.what_is_held} "
        return f"{name}: {shape}, rows {rows}, columns {cols}, {what}{held}"

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
            "at_random": self.at_random,
        }


@dataclass(frozen=True)
class CalibrationReport:
    """All layers of one adapter, the mean loss of the calibration batches, and the seconds it took in all."""

    method: str
    layers: tuple[LayerReport, ...]
    batches: int
    loss: float | None  # None where no batch was looked at
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

    @property
    def found(self) -> tuple[LayerReport, ...]:
        """The layers whose placement was found, and not drawn."""
        return tuple(layer for layer in self.layers if not layer.at_random)

    def numbers(self) -> dict[str, float | int | str | None]:
        """The summary as numbers: for a log."""
        layers = self.found
        shares = [layer.held for layer in layers]
        return {
            "method": self.method,
            "layers": len(self.layers),
            "batches": self.batches,
            "loss": self.loss,
            "held_median": median(shares),
            "held_least": min(shares),
            "held_most": max(shares),
            "held_if_even": median(layer.share_of_entries for layer in layers),
            "at_random": len(self.layers) - len(layers),
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        return "\n".join(self.summary())

    def summary(self) -> list[str]:
        """What was placed, what the placements hold, the layers that stand out, and those that no gradient reached."""
        source = "an update" if self.loss is None else f"{self.batches} batch{'es' if self.batches != 1 else ''}"
        head = f"{self.method}: {len(self.layers)} layers placed from {source} in {self.seconds:.1f} s"
        if self.loss is not None:
            head += f" (loss {self.loss:.3f})"
        layers = sorted(self.found, key=lambda layer: layer.held)
        left = [layer.name for layer in self.layers if layer.at_random]
        shares = [layer.held for layer in layers]
        return [
            head,
            f"{layers[0].what_is_held}: median {median(shares):.1%}, "
            f"and {median(layer.share_of_entries for layer in layers):.1%} if it were spread evenly over the matrix",
            f"range: {shares[0]:.1%} to {shares[-1]:.1%}",
            f"most:  {layers[-1]}",
            f"least: {layers[0]}",
            *([f"placed at random, without a gradient: {len(left)}, {listed(left)}"] if left else []),
        ]

    def table(self) -> str:
        """Every layer on a line of its own."""
        return "\n".join([self.summary()[0], *(f"  {layer}" for layer in self.layers)])

    def _repr_html_(self) -> str:
        """For notebooks: the summary, and every layer below it, folded away."""
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in layer.cells())}</tr>" for layer in self.layers
        )
        head = "".join(
            f"<th>{escape(name)}</th>" for name in ("layer", "shape", "rows", "columns", self.layers[0].what_is_held)
        )
        return (
            f"<p>{'<br>'.join(map(escape, self.summary()))}</p><details><summary>all layers</summary>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details>"
        )
