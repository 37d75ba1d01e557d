"""Run records: written whole or not at all, read back equal, refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localora.lab.training.record import Curve, Evaluation, Parameters, Point, RecordError, RunRecord


def record() -> RunRecord:
    return RunRecord(
        recipe={"method": {"name": "cps-lora"}},
        seed=3,
        data={"name": "toy", "sizes": {"train": 2}, "hashes": {"train": "ab"}},
        parameters=Parameters(trainable=10, lora_same_r=10, base=100),
        before=Evaluation(
            loss=2.0, examples=4, score_name="exact match", score=0.5, score_examples=2, right=[True, False]
        ),
        curve=Curve(train=[Point(step=1, loss=2.0)], held_out=[Point(step=0, loss=2.1)]),
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    record().write(path)
    assert RunRecord.read(path) == record()
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_versions_name_the_packages_that_matter() -> None:
    assert record().versions.keys() >= {"python", "localora", "torch", "transformers", "peft"}


def test_a_failed_write_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    record().write(path)
    broken = record()
    broken.before.loss = float("nan")  # not JSON
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.write(path)
    assert RunRecord.read(path) == record()


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with pytest.raises(RecordError, match=r"run\.json cannot be read: No such file"):
        RunRecord.read(path)
    path.write_text("{")
    with pytest.raises(RecordError, match=r"is no run record of format 1"):
        RunRecord.read(path)
    values = record().model_dump(mode="json")
    path.write_text(json.dumps(values | {"format": 2}))
    with pytest.raises(RecordError, match=r"format 1 \(format: "):
        RunRecord.read(path)
