"""The picture: seconds and memory against m + n, with the line through the largest matrix for comparison."""

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
    growth.plot(sizes, [seconds[-1] * size / sizes[-1] for size in sizes], "--", color="grey", label="linear in m + n")
    growth.set_xscale("log", base=2)
    growth.set_yscale("log", base=2)
    growth.set_xlabel("m + n of one matrix")
    growth.set_ylabel("seconds")
    growth.legend(fontsize=8)
    spent = result["llama_3_8b"]["parts"]
    parts.barh(list(spent), list(spent.values()))
    parts.invert_yaxis()
    parts.set_xlabel("seconds, all 224 matrices of Llama-3-8B's shapes")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
