"""Run records: written whole or not at all, read back equal, refused when damaged."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from localora.lab import machine
from localora.lab.data.example import Example, item_id
from localora.lab.training.record import Curve, Evaluation, Items, Parameters, Point, RecordError, RunRecord


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


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\x00r\x00",
        b'{"recipe": "\xe9"}',
        b'{"recipe": "\\ud800"}',
        b"[" * 100_000,
        b'{"seed": ' + b"1" * 5000 + b"}",
        b"",
    ],
)
def test_bytes_that_are_no_record(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(RecordError, match=r"run\.json is no run record of format 1"):
        RunRecord.read(tmp_path / "run.json")


@pytest.mark.parametrize("recipe", [{}, {"method": "lora"}, {"method": {}}, {"method": {"name": "unheard-of"}}])
def test_a_record_names_its_method(tmp_path: Path, recipe: dict[str, object]) -> None:
    values = record().model_dump(mode="json") | {"recipe": recipe}
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(RecordError, match=r"\(recipe: .*method.name is missing or no method of ours"):
        RunRecord.read(tmp_path / "run.json")


def test_a_budget_of_nothing_is_refused_before_a_share_of_it_is_taken(tmp_path: Path) -> None:
    values = record().model_dump(mode="json")
    values["parameters"]["lora_same_r"] = 0
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(RecordError, match=r"\(parameters\.lora_same_r: .* greater than or equal to 1"):
        RunRecord.read(tmp_path / "run.json")


def test_items_take_a_line_a_list_and_must_be_of_one_length(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    kept = record()
    kept.before.items = Items(ids=['a", [b', "c"], loss_sums=[1.5, 0.25], tokens=[3, 1])
    kept.repartitions = [{"step": 3, "layers": []}, {"step": 5, "layers": [1.5]}]
    kept.write(path)
    assert RunRecord.read(path) == kept
    text = path.read_text()
    assert '"loss_sums": [1.5, 0.25]' in text
    assert '"right": [true, false]' in text
    with pytest.raises(ValueError, match="2 ids, 1 loss_sums, 2 tokens"):
        Items(ids=["a", "b"], loss_sums=[1.0], tokens=[1, 2])


def test_items_are_called_by_what_they_hold() -> None:
    example = Example("file:3", "2 + 2 =", " 4", answer="4")
    assert item_id(example) == item_id(replace(example, id="other:9"))
    assert item_id(example) != item_id(replace(example, completion=" 5"))
    assert len(item_id(example)) == 12


def test_the_record_says_on_what_it_was_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: One 9000\nflags\t\t: fpu avx2 avx512_bf16\n\nmodel name\t: Two\n")
    monkeypatch.setattr(machine, "CPUINFO", info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    made = record().machine
    assert (made["cpu"], made["instructions"]) == ("One 9000", ["AVX2", "avx512_bf16"])
    info.unlink()
    assert machine.processor()[0] in (platform.processor(), platform.machine())
