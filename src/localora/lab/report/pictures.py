"""Placements as pictures, from the saved labels: which entries of a weight belong to which cluster or block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from torch import Tensor

from localora.adapter.adapter_file import is_localized, read_adapter
from localora.lab.inspect.thumbnails import by_cluster
from localora.lab.model.targets import depth_order
from localora.placement.partition import UNCOVERED, Partition

LAYERS = 3  # drawn: the first, the middle and the last
PIXELS = 384  # larger matrices are thinned evenly to about this many rows and columns
UNTOUCHED = "#e6e6e6"
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


def short_name(name: str) -> str:
    """model.layers.3.self_attn.q_proj rather than base_model.model.model.layers.3.self_attn.q_proj."""
    return ".".join(name.split(".")[-4:])
