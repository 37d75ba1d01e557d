"""Pictures show the labels that were saved: which colour is where, in which order."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image

import tiny_models
from localora import CpsLoraConfig
from localora.adapter.status import adapted_layers
from localora.lab.report.pictures import (
    draw_losses,
    draw_placements,
    entry_labels,
    load_partitions,
    plot_losses,
    plot_partition,
)
from localora.lab.training.record import Curve, Point
from localora.placement.partition import UNCOVERED, Partition

TWO = Partition.from_labels([1, 0, 1], [0, 1, 1, 0], 2)


def shown(partition: Partition, *, reordered: bool) -> np.ndarray:
    """The label image that is drawn."""
    figure, axes = plt.subplots()
    plot_partition(axes, partition, reordered=reordered)
    image = np.asarray(axes.images[0].get_array())
    plt.close(figure)
    return image


def test_an_entry_has_its_cluster_where_row_and_column_agree() -> None:
    labels = entry_labels(TWO.row_labels, TWO.col_labels)
    assert labels.tolist() == [[-1, 1, 1, -1], [0, -1, -1, 0], [-1, 1, 1, -1]]
    assert torch.equal(labels >= 0, TWO.mask())


def test_sorting_gathers_each_cluster_into_a_block() -> None:
    assert shown(TWO, reordered=True).tolist() == [[0, 0, -1, -1], [-1, -1, 1, 1], [-1, -1, 1, 1]]
    block = Partition.block(3, 4, torch.tensor([2]), torch.tensor([1, 3]))
    assert shown(block, reordered=False).tolist() == [[-1] * 4, [-1] * 4, [-1, 0, -1, 0]]
    assert shown(block, reordered=True).tolist() == [[0, 0, -1, -1], [-1] * 4, [-1] * 4]


def test_a_large_matrix_is_thinned_evenly_and_keeps_its_scale() -> None:
    rows = torch.arange(4000) // 2000
    figure, axes = plt.subplots()
    plot_partition(axes, Partition.from_labels(rows, rows, 2), reordered=True)
    image = np.asarray(axes.images[0].get_array())
    assert image.shape == (400, 400)
    assert (image[:200, :200] == 0).all()
    assert (image[:200, 200:] == UNCOVERED).all()
    assert tuple(axes.images[0].get_extent()) == (0, 4000, 4000, 0)
    plt.close(figure)


def test_the_saved_labels_are_read_back_in_order_of_depth(tmp_path: Path) -> None:
    config = CpsLoraConfig(r=2, clusters=2, placement="random", target_modules=tiny_models.LLAMA_TARGETS)
    model = get_peft_model(tiny_models.tiny_llama(), config)
    model.save_pretrained(tmp_path)
    partitions = load_partitions(tmp_path)
    expected = {name: layer.local_partition("default") for name, layer in adapted_layers(model, "default")}
    assert {name.removeprefix("base_model.model."): p for name, p in partitions.items()} == {
        name.removeprefix("base_model.model."): p for name, p in expected.items()
    }
    blocks = [name.split("layers.")[1][0] for name in partitions]
    assert blocks == sorted(blocks)


def test_an_empty_cluster_is_a_cluster_too(tmp_path: Path) -> None:
    """The number of clusters is the config's: the largest label in use may be smaller."""
    config = CpsLoraConfig(r=2, clusters=3, placement="random", target_modules=["q_proj"])
    model = get_peft_model(tiny_models.tiny_llama(), config)
    ((_, layer), *_) = adapted_layers(model, "default")
    without_the_last = Partition.from_labels([0] * 16 + [1] * 16, [1] * 16 + [0] * 16, 3)
    layer.place("default", without_the_last)
    model.save_pretrained(tmp_path)
    partition = next(iter(load_partitions(tmp_path).values()))
    assert partition == without_the_last
    assert partition.row_sizes == (16, 16, 0)


def test_the_picture_is_a_picture(tmp_path: Path) -> None:
    draw_placements({"model.layers.0.self_attn.q_proj": TWO, "model.layers.1.mlp.down_proj": TWO}, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colours = {tuple(pixel) for pixel in np.unique(pixels, axis=0).tolist()}
    assert {(0x33, 0x22, 0x88), (0xDD, 0xCC, 0x77), (0xE6, 0xE6, 0xE6)} <= colours  # both clusters and the rest


@pytest.fixture
def curve() -> Curve:
    return Curve(
        train=[Point(step=1, loss=3.0), Point(step=2, loss=2.0)],
        held_out=[Point(step=0, loss=3.1), Point(step=2, loss=2.2)],
    )


def test_the_curves_are_those_of_the_record(curve: Curve) -> None:
    figure, axes = plt.subplots()
    plot_losses(axes, {"lora": curve, "g-lora": curve})
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines) == [
        "lora, training batches",
        "lora, held out",
        "g-lora, training batches",
        "g-lora, held out",
    ]
    assert lines["lora, held out"].get_xydata().tolist() == [[0, 3.1], [2, 2.2]]
    assert lines["lora, held out"].get_color() != lines["g-lora, held out"].get_color()
    assert axes.get_xlabel() == "step"
    assert axes.get_ylabel() == "loss (nats per completion token)"
    plt.close(figure)


def test_losses_go_to_a_file(curve: Curve, tmp_path: Path) -> None:
    draw_losses({"lora": curve}, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (1125, 675)


def test_a_curve_without_points_is_an_empty_picture(tmp_path: Path) -> None:
    draw_losses({"lora": Curve()}, tmp_path / "loss.png")  # of a run that stopped before its first step
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (1125, 675)
