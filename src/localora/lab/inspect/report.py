"""What the microscope saw: figures of all layers, in memory and as JSON."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from localora.lab.inspect.cluster_test import CLUSTERS, NONE, UNCHANGED, UNDECIDED, UNEVEN
from localora.lab.inspect.layer import LayerInspection

SCHEMA = 1
VERDICTS = {
    CLUSTERS: "clusters of rows and columns, beyond what uneven row and column energies explain",
    UNEVEN: "no clusters, but some rows and columns hold more of the update than others",
    NONE: "no clusters worth the name: little or no excess over random updates of the same singular values",
    UNDECIDED: "may be clusters; too few rows or columns hold the update to tell",
    UNCHANGED: "not changed by the training",
}


@dataclass(frozen=True)
class InspectionReport:
    """All layers of one source, inspected at one budget."""

    source: str  # what was inspected, in a line
    rank: int  # r, the budget in LoRA's rank
    clusters: tuple[int, ...]  # the numbers K tried
    draws: int  # of each null
    seed: int
    by_construction: bool  # the adapter is made of clusters, so finding them says nothing about the training
    layers: tuple[LayerInspection, ...]  # in the order of the model
    skipped: dict[str, str]  # what was left out, and why
    seconds: float

    @property
    def changed(self) -> list[LayerInspection]:
        """The layers whose dW is not zero."""
        return [layer for layer in self.layers if layer.test.verdict != UNCHANGED]

    def verdicts(self) -> dict[str, int]:
        """Layers by verdict, in the order of :data:`VERDICTS`."""
        counts = Counter(layer.test.verdict for layer in self.layers)
        return {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}

    def median_captured(self) -> dict[str, float]:
        """The median over changed layers of each captured energy; figures that no layer has are left out."""
        keys = dict.fromkeys(key for layer in self.changed for key in layer.captured)
        values = {
            key: [x for x in (layer.captured.get(key) for layer in self.changed) if x is not None] for key in keys
        }
        return {key: statistics.median(x) for key, x in values.items() if x}

    def median_ranks(self) -> tuple[float, float]:
        """The medians over changed layers of effective and of stable rank."""
        changed = self.changed
        return statistics.median(x.effective_rank for x in changed), statistics.median(x.stable_rank for x in changed)

    def headline(self) -> str:
        """Whether there are clusters, in a sentence."""
        total, found = len(self.layers), self.verdicts().get(CLUSTERS, 0)
        if self.by_construction:
            return f"{found} of {total} layers show clusters; this adapter is made of clusters, so it must"
        if not found:
            return f"no clusters in any of {total} layers"
        return f"clusters in {found} of {total} layers"

    def record(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON; floats with 6 significant digits, no NaN."""
        layers = [{k: v for k, v in vars(layer).items() if k not in ("thumbnails", "test")} for layer in self.layers]
        for entry, layer in zip(layers, self.layers, strict=True):
            entry["test"] = asdict(layer.test)
        own = {k: v for k, v in vars(self).items() if k != "layers"}
        summary = {"headline": self.headline(), "verdicts": self.verdicts(), "median_captured": self.median_captured()}
        return _rounded({"schema": SCHEMA, **own, "summary": summary, "layers": layers})

    def to_json(self) -> str:
        """:meth:`record` as text."""
        return json.dumps(self.record(), indent=1, allow_nan=False) + "\n"

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.headline()} (r {self.rank}, {self.draws} draws a null, {self.seconds:.0f} s)"]
        lines += [f"  {count:4d} {verdict:10s} {VERDICTS[verdict]}" for verdict, count in self.verdicts().items()]
        if self.changed:
            effective, stable = self.median_ranks()
            lines.append(f"  median effective rank {effective:.1f}, stable rank {stable:.1f}, budget {self.rank}")
            lines.append("  median energy captured at the budget:")
            lines += [f"    {key:18s} {value:6.1%}" for key, value in self.median_captured().items()]
        if self.skipped:
            lines.append(f"  left out: {len(self.skipped)} tensors, such as {next(iter(self.skipped))}")
        return "\n".join(lines)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
