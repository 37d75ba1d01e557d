"""The picture: seconds against m + n, and what the seconds of a whole model go to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(result: dict[str, Any], path: Path) -> None:
    """Left: one square matrix, by size. Right: what the whole model's seconds go to."""
    figure, (growth, parts) = plt.subplots(1, 2, figsize=(10, 3.6))
    rows = result["square"]
    sizes = [2 * row["size"] for row in rows]
    seconds = [row["cpu_seconds"] for row in rows]
    growth.plot(sizes, seconds, "o-", label="measured (processor seconds)")
    slope = (seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0])
    line = [seconds[0] + slope * (size - sizes[0]) for size in sizes]
    growth.plot(sizes, line, "--", color="grey", label="straight line through the ends")
    growth.set_ylim(bottom=0)
    growth.set_xlabel("m + n of one square matrix")
    growth.set_ylabel("seconds")
    growth.legend(fontsize=8)
    spent = result["llama_3_8b"]["parts"]
    parts.barh(list(spent), list(spent.values()))
    parts.invert_yaxis()
    parts.set_xlabel("seconds of all threads")
    parts.set_title("224 matrices of Llama-3-8B's shapes", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
