"""The README's picture: trained updates dW in their own order of rows and columns, and sorted by co-cluster.

python -m tools.readme_picture runs/quickstart-comparison/cps-lora
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from safetensors.torch import load_file
from torch import Tensor

from localora.lab.inspect.pictures import short_name
from localora.lab.report.pictures import entry_labels, load_partitions
from localora.placement.partition import Partition

PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "co-clusters.png"
LAYERS = ("model.layers.14.self_attn.q_proj", "model.layers.14.mlp.down_proj")
COLOURS = ("#2166ac", "#c4500c", "#1b7837", "#762a83")  # clusters'
PIXELS = 128  # rows and columns are thinned to about so many: a thin picture shows scattered entries, a thick one grey
FULL = 0.9  # this quantile of |dW| has the cluster's full colour


def draw(run: Path, out: Path) -> None:
    """Of the run's adapter its labels, and of its plain-LoRA copy dW = B A."""
    partitions, tensors = load_partitions(run / "adapter"), load_file(run / "lora" / "adapter_model.safetensors")
    figure, panels = plt.subplots(1, 2 * len(LAYERS), figsize=(11, 3.1), layout="constrained", facecolor="white")
    for layer, pair in zip(LAYERS, panels.reshape(-1, 2), strict=True):
        key = f"base_model.model.{layer}"
        update = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        rows, cols = thinned(partitions[key])
        show(pair[0], update, partitions[key], rows, cols)
        pair[0].set_title(f"{short_name(layer).removeprefix('model.')}", fontsize=9)
        by_row, by_col = (labels.argsort(stable=True) for labels in labels_of(partitions[key], rows, cols))
        show(pair[1], update, partitions[key], rows[by_row], cols[by_col])
        pair[1].set_title("the same, sorted by cluster", fontsize=9)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def thinned(partition: Partition) -> tuple[Tensor, Tensor]:
    """Evenly spaced rows and columns."""
    sides = (partition.m, partition.n)
    rows, cols = (torch.linspace(0, side - 1, min(side, PIXELS)).round().long() for side in sides)
    return rows, cols


def labels_of(partition: Partition, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    return partition.row_labels[rows].long(), partition.col_labels[cols].long()


def show(axes: Axes, update: Tensor, partition: Partition, rows: Tensor, cols: Tensor) -> None:
    """White where dW is zero, the colour of the entry's cluster where it is large."""
    strength = (update.abs() / update.abs()[update != 0].quantile(FULL)).clamp(max=1).sqrt()[rows][:, cols]
    labels = entry_labels(*labels_of(partition, rows, cols)).long()
    colours = torch.tensor([to_rgb(colour) for colour in COLOURS[: partition.clusters]])
    image = 1 - strength[..., None] * (1 - colours[labels.clamp(min=0)])
    axes.imshow(image.numpy(), interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(f"{partition.n} columns (inputs)", fontsize=8)
    axes.set_ylabel(f"{partition.m} rows (outputs)", fontsize=8)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), PICTURE)
