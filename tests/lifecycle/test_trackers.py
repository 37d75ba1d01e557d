"""Runs with real trackers: what TensorBoard and Trackio hold of calibration and events, pictures included."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from moving import partition
from test_callback import trainer, unplaced

from localora import LocalizationCallback, Partition
from localora.adapter.model import adapted_layers
from localora.lifecycle.trainer import GAP, HEIGHT, UNCOVERED, WIDTH, labels_picture
from method_table import BY_NAME
from patience import PATIENCE


def test_the_picture_is_the_labels() -> None:
    block = Partition.from_labels(torch.tensor([0, -1]), torch.tensor([-1, 0, -1, 0]), 1)
    clusters = Partition.from_labels(torch.tensor([0, 1, 2]), torch.tensor([2, 1, 0]), 3)
    picture = labels_picture([block, clusters])
    assert picture.shape == (3, 2 * HEIGHT, 2 * WIDTH + GAP)
    first, second = picture[:, 0], picture[:, HEIGHT]
    grey = (first == torch.tensor(UNCOVERED)[:, None]).all(0)
    assert grey[:WIDTH].tolist() == [False] * (WIDTH // 2) + [True] * (WIDTH // 2)
    assert grey[WIDTH + GAP :].tolist() == ([True] * (WIDTH // 4) + [False] * (WIDTH // 4)) * 2
    assert torch.equal(second[:, 0], second[:, -1])  # cluster 0: the first row and the last column
    assert len({tuple(second[:, i].tolist()) for i in (0, WIDTH // 2, WIDTH - 1)}) == 3


@pytest.mark.slow
def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    model, callback = unplaced(BY_NAME["cps-lora"], repartition=[0.5]), LocalizationCallback(steps=2)
    run = trainer(model, tmp_path, [callback], report_to=["tensorboard"], max_steps=4)
    run.train()
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    tags = board.Tags()
    (held,) = board.Scalars("train/calibration/default/held_median")
    assert (held.step, held.value) == (0, pytest.approx(callback.reports["default"].numbers()["held_median"]))
    (moved,) = board.Scalars("train/repartition/default/rows_moved")
    (event,) = callback.repartitioners["default"].events
    assert (moved.step, moved.value) == (2, event.rows_moved)
    assert tags["images"] == ["train/calibration/default/labels", "train/repartition/default/labels"]
    (picture,) = board.Images("train/repartition/default/labels")
    pixels = torch.tensor(list(Image.open(io.BytesIO(picture.encoded_image_string)).convert("RGB").getdata()))
    now = labels_picture([partition(layer) for _, layer in adapted_layers(model, "default")])
    assert torch.equal(pixels.T.reshape(now.shape).to(torch.uint8), now)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio(tmp_path: Path) -> None:
    """In a process of its own: where it keeps its data, it reads from the environment when it is imported."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    env = {**os.environ, "PYTHONPATH": path, "TRACKIO_DIR": str(tmp_path / "tracks"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-W", "ignore", __file__, str(tmp_path)], env=env, check=True, timeout=PATIENCE)
    expected = json.loads((tmp_path / "expected.json").read_text())
    (tracks,) = (tmp_path / "tracks").rglob("placed.db")
    with sqlite3.connect(tracks) as base:
        rows = [json.loads(row) for (row,) in base.execute("select metrics from metrics order by id")]
    found = {key: value for row in rows for key, value in row.items()}
    assert {key: found[key] for key in expected} == expected
    assert sum("train/loss" in row for row in rows) == 4


def track(folder: Path) -> None:
    """The run of :func:`test_trackio`, and what of it must have arrived."""
    callback = LocalizationCallback(steps=2)
    where = {"report_to": ["trackio"], "project": "placed", "trackio_space_id": None}
    trainer(unplaced(BY_NAME["cps-lora"], repartition=[0.5]), folder, [callback], max_steps=4, **where).train()
    (event,) = callback.repartitioners["default"].events
    expected = {
        "train/calibration/default/held_median": callback.reports["default"].numbers()["held_median"],
        "train/repartition/default/rows_moved": event.rows_moved,
        "train/repartition/default/loss_before": event.loss_before,
    }
    (folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    track(Path(sys.argv[1]))
