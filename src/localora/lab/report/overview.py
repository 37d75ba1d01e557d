"""One picture of several runs: their losses side by side, and where each put its parameters in one layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from localora.lab.report.curves import plot_losses
from localora.lab.report.pictures import load_partitions, plot_partition, short_name
from localora.lab.training.record import RunRecord


def draw_overview(runs: Mapping[str, tuple[RunRecord, Path]], path: Path) -> None:
    """Losses of all runs on top; below, one line a placed method: its middle layer as it is, and sorted.

    `runs` gives each method's record and adapter folder.
    """
    partitions = {name: load_partitions(adapter) for name, (_, adapter) in runs.items()}
    placed = {name: layers for name, layers in partitions.items() if layers}
    figure = plt.figure(figsize=(9, 4.2 + 3.2 * len(placed)), layout="constrained")
    grid = figure.add_gridspec(1 + len(placed), 2, height_ratios=[1.3, *[1] * len(placed)])
    plot_losses(figure.add_subplot(grid[0, :]), {name: record.curve for name, (record, _) in runs.items()})
    for line, (name, layers) in enumerate(placed.items(), start=1):
        layer = list(layers)[len(layers) // 2]
        as_is, sorted_ = figure.add_subplot(grid[line, 0]), figure.add_subplot(grid[line, 1])
        plot_partition(as_is, layers[layer], reordered=False)
        plot_partition(sorted_, layers[layer], reordered=True)
        as_is.set_title(f"{name}: {short_name(layer)}", fontsize="medium")
    figure.savefig(path, dpi=130)
    plt.close(figure)
