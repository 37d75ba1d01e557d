"""Pictures of runs: loss curves, and from the saved labels which entries of a weight belong to which cluster."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from localora.adapter.adapter_file import is_localized, read_adapter
from localora.lab.inspect.pictures import short_name
from localora.lab.inspect.source import depth_order
from localora.lab.inspect.thumbnails import by_cluster
from localora.lab.recipe.methods import LocalizedMethod
from localora.lab.recipe.schema import Recipe
from localora.lab.training.folder import RunFolder
from localora.lab.training.record import Curve, RunRecord
from localora.placement.partition import UNCOVERED, Partition

LAYERS = 3  # drawn: the first, the middle and the last
PIXELS = 384  # larger matrices are thinned evenly to about this many rows and columns
UNTOUCHED = "#e6e6e6"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by colour-blind readers too
CLUSTER_COLOURS = (
    "#332288",
    "#ddcc77",
    "#44aa99",
    "#cc6677",
    "#88ccee",
    "#aa4499",
    "#117733",
    "#999933",
)  # not a run's


def draw_run(recipe: Recipe, record: RunRecord) -> None:
    """loss.png, and placement.png where the method places anything; nothing where the recipe wants no pictures."""
    if not recipe.output.plots:
        return
    folder = RunFolder(Path(str(recipe.output.folder)))
    draw_losses({record.method: record.curve}, folder.loss_picture)
    partitions = load_partitions(folder.adapter) if isinstance(recipe.method, LocalizedMethod) else {}
    if partitions:  # LoRA as a placement has none
        draw_placements(partitions, folder.placement_picture)


def draw_losses(curves: Mapping[str, Curve], path: Path) -> None:
    """The curves of one run or of several, in a figure of their own."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    plot_losses(axes, curves)
    axes.set_title(f"Loss of {', '.join(curves)}", fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_losses(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Thin lines: loss of each training batch; marked lines: loss on held-out (validation) examples."""
    for colour, (name, curve) in zip(cycle(COLOURS), curves.items(), strict=False):
        train = [p.step for p in curve.train], [p.loss for p in curve.train]
        held_out = [p.step for p in curve.held_out], [p.loss for p in curve.held_out]
        axes.plot(*train, color=colour, linewidth=0.8, alpha=0.45, label=f"{name}, training batches")
        axes.plot(*held_out, color=colour, linewidth=1.8, marker="o", markersize=4, label=f"{name}, held out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per completion token)")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small")


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


def load_partitions(adapter: Path) -> dict[str, Partition]:
    """Each layer's local partition in a saved adapter, by name, in order of depth; empty for plain LoRA."""
    layers = read_adapter(adapter).layers if is_localized(adapter) else {}
    found = {name: layers[name].partition() for name in sorted(layers, key=depth_order)}
    return {name: partition for name, partition in found.items() if partition is not None}


def draw_placements(partitions: Mapping[str, Partition], path: Path) -> None:
    """The first, the middle and the last layer: each as it is, and with rows and columns sorted by cluster."""
    names = list(partitions)
    picked = sorted({round(i * (len(names) - 1) / (LAYERS - 1)) for i in range(LAYERS)})
    figure, grid = plt.subplots(len(picked), 2, figsize=(9, 3.4 * len(picked)), layout="constrained", squeeze=False)
    for line, i in zip(grid, picked, strict=True):
        plot_partition(line[0], partitions[names[i]], reordered=False)
        plot_partition(line[1], partitions[names[i]], reordered=True)
        line[0].set_title(short_name(names[i]), fontsize="medium")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_partition(axes: Axes, partition: Partition, *, reordered: bool) -> None:
    """Colour the entries that the local term may change, one colour a cluster; grey ones belong to none.

    A global term changes every entry and is not drawn. `reordered` sorts rows and columns by cluster.
    """
    rows, cols = partition.row_labels, partition.col_labels
    if reordered:
        rows, cols = rows[by_cluster(rows)], cols[by_cluster(cols)]
        axes.set_title(_sizes(partition), fontsize="medium")
    order = "by cluster" if partition.clusters > 1 else "block first"
    order = order if reordered else "original order"
    colours = [UNTOUCHED] + [CLUSTER_COLOURS[k % len(CLUSTER_COLOURS)] for k in range(partition.clusters)]
    axes.imshow(
        entry_labels(_thinned(rows), _thinned(cols)).numpy(),
        cmap=ListedColormap(colours),
        vmin=UNCOVERED,
        vmax=partition.clusters - 1,
        interpolation="nearest",
        aspect="auto",
        extent=(0, partition.n, partition.m, 0),
    )
    axes.set_xlabel(f"column (input), {order}")
    axes.set_ylabel(f"row (output), {order}")


def entry_labels(row_labels: Tensor, col_labels: Tensor) -> Tensor:
    """`(m, n)` int8: the cluster of each entry, UNCOVERED where row and column disagree or are not covered."""
    agree = row_labels[:, None] == col_labels[None, :]
    return torch.where(agree, row_labels[:, None], torch.tensor(UNCOVERED, dtype=row_labels.dtype))


def _thinned(labels: Tensor) -> Tensor:
    step = max(1, round(labels.numel() / PIXELS))
    return labels[::step]


def _sizes(partition: Partition) -> str:
    if partition.clusters == 1:
        return f"block of {partition.covered_rows} x {partition.covered_cols}"
    blocks = [f"{m} x {n}" for m, n in zip(partition.row_sizes, partition.col_sizes, strict=True)]
    shown = ", ".join(blocks[:4]) + (", ..." if len(blocks) > 4 else "")
    return f"{partition.clusters} clusters: {shown}"
