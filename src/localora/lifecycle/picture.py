"""A picture of where an adapter acts, for trackers that take one: a stripe a layer, rows left, columns right."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

import torch
from torch import Tensor

from localora.placement.partition import Partition

WIDTH, HEIGHT, GAP = 256, 6, 8  # pixels: rows or columns of a layer, a layer, between rows and columns
UNCOVERED = (40, 40, 40)
GOLDEN = 0.618034  # of the circle of hues: any few clusters in a row differ


def labels_picture(partitions: Iterable[Partition]) -> Tensor:
    """uint8 `(3, layers * HEIGHT, 2 * WIDTH + GAP)`: a colour a cluster, grey what the local term does not cover."""
    stripes = []
    for partition in partitions:
        gap = torch.full((3, GAP), 255, dtype=torch.uint8)
        stripe = torch.cat([_colours(partition.row_labels), gap, _colours(partition.col_labels)], dim=1)
        stripes.append(stripe[:, None].expand(3, HEIGHT, -1))
    return torch.cat(stripes, dim=1)


def _colours(labels: Tensor) -> Tensor:
    """uint8 `(3, WIDTH)`: the label nearest to each pixel."""
    labels = labels.cpu().long()
    hues = [colorsys.hsv_to_rgb(k * GOLDEN % 1, 0.75, 0.95) for k in range(int(labels.max()) + 1)]
    colours = torch.tensor([UNCOVERED, *([round(255 * part) for part in rgb] for rgb in hues)], dtype=torch.uint8)
    shown = labels[torch.arange(WIDTH) * len(labels) // WIDTH]
    return colours[shown + 1].T
