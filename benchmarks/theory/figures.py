"""The pictures: error against parameters, and the advantage as the bases overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"lora": "#7f7f7f", "cps-oracle": "#1f77b4", "cps-found": "#d62728", "cps-free": "#2ca02c"}
LABELS = {
    "lora": "LoRA",
    "cps-oracle": "CPS-LoRA, oracle labels",
    "cps-found": "CPS-LoRA, found labels",
    "cps-free": "CPS-LoRA, found, balance 0",
}
ERROR = "error, share of the planted update"

Row = dict[str, Any]


def draw_parameters(summary: dict[str, Any], path: Path) -> None:
    """One panel a K: trained errors as points with intervals, the optimum at each rank as a line."""
    every_k = sorted({row["clusters"] for row in summary["curves"]})
    figure, panels = plt.subplots(1, len(every_k), figsize=(4.2 * len(every_k), 3.6), sharey=True, squeeze=False)
    for K, panel in zip(every_k, panels[0], strict=True):
        rows = [row for row in summary["curves"] if row["clusters"] == K]
        for student in ("lora", "cps-oracle", "cps-found"):
            mine = sorted((row for row in rows if row["student"] == student), key=lambda row: row["r"])
            _points(panel, [row["parameters"] for row in mine], mine, student)
            if student != "cps-found":  # the optimum is the oracle's
                panel.plot(
                    [row["parameters"] for row in mine],
                    [row["optimum"] for row in mine],
                    color="black",
                    linewidth=1,
                    linestyle=":",
                    zorder=3,
                    label="optimum at that rank" if student == "lora" else None,
                )
        panel.set_title(f"K = {K} planted blocks")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel("trainable parameters")
    panels[0][0].set_ylabel(ERROR)
    panels[0][0].legend(fontsize=8)
    _save(figure, path)


def draw_overlap(summary: dict[str, Any], path: Path) -> None:
    """Errors at equal parameters, and LoRA's at K times as many, against the dial."""
    figure, panel = plt.subplots(figsize=(6, 3.8))
    K, rank = (summary["dial"][0][key] for key in ("clusters", "r"))
    for student in COLOURS:
        mine = sorted((row for row in summary["dial"] if row["student"] == student and row["r"] == rank), key=_overlap)
        _points(panel, [row["overlap"] for row in mine], mine, student)
    large = sorted((row for row in summary["dial"] if row["r"] == K * rank), key=_overlap)
    panel.plot(
        [row["overlap"] for row in large],
        [row["error"]["mean"] for row in large],
        color=COLOURS["lora"],
        linestyle=":",
        marker="o",
        markersize=4,
        label=f"LoRA, {K} times the parameters",
    )
    panel.set_xlabel("overlap of the bases")
    panel.set_ylabel(ERROR)
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=8)
    panel.set_title(f"K = {K} blocks, r = {rank}")
    _save(figure, path)


def _overlap(row: Row) -> float:
    return float(row["overlap"])


def _points(panel: Axes, x: list[float], rows: list[Row], student: str) -> None:
    panel.errorbar(
        x,
        [row["error"]["mean"] for row in rows],
        yerr=[row["error"]["half"] for row in rows],
        color=COLOURS[student],
        label=LABELS[student],
        marker="x" if student == "cps-found" else "o",
        markersize=5,
        linewidth=1,
        capsize=3,
    )


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
