"""An export is whole, as it was, or not there: kills and full disks between its files, folders that hold something."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file

from adapted_models import adapted
from localora import ExportError, export_lora
from localora.adapter.saved_layers import AdapterFileError
from localora.adapter.status import adapted_layers
from localora.export import lora
from localora.files import PARTIAL, written_folder
from method_table import BY_NAME

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cut_between_weights_and_config(out: Path) -> None:
    """Replaces the export of rank 4 (in `out`) by one of rank 12, and dies when its weights are on the disk."""

    def die(*_: object) -> None:
        os._exit(9)

    lora._write_config = die
    export_lora(adapted(BY_NAME["cps-lora"]), out, overwrite=True)


@pytest.mark.slow
def test_killed_between_weights_and_config_the_old_export_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "plain"
    export_lora(adapted(BY_NAME["lora-by-share"]), out)
    before = contents(out)
    process = multiprocessing.get_context("fork").Process(target=cut_between_weights_and_config, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert contents(out) == before
    left = [path for path in tmp_path.iterdir() if path != out]
    assert len(left) == 1
    assert left[0].name.startswith(".plain.partial-")
    assert {path.name for path in left[0].iterdir()} == {WEIGHTS}  # it was cut where it was meant to be
    export_lora(adapted(BY_NAME["cps-lora"]), out, overwrite=True)
    assert json.loads((out / CONFIG).read_text())["r"] == 16
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]  # what was left is cleared away


def cut_between_renames(out: Path) -> None:
    """Dies when the old export has left its place and the new one has not taken it."""
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if PARTIAL in self.name:
            os._exit(9)
        return rename(self, target)

    Path.rename = dies  # type: ignore[method-assign]
    export_lora(adapted(BY_NAME["cps-lora"]), out, overwrite=True)


@pytest.mark.slow
def test_killed_between_the_renames_the_old_export_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "plain"
    export_lora(adapted(BY_NAME["lora-by-share"]), out)
    before = contents(out)
    process = multiprocessing.get_context("fork").Process(target=cut_between_renames, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not out.exists()
    with pytest.raises(ExportError, match="is not empty"):  # it is back, so it is not replaced unasked
        export_lora(adapted(BY_NAME["cps-lora"]), out)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "plain"
    with written_folder(out) as theirs:  # locked, as it would be by another process
        export_lora(adapted(BY_NAME["cps-lora"]), out)
        assert theirs.exists()
    assert contents(out) == {}  # the last one stays


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device (os 28)")],
    ids=["config", "weights"],
)
@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_ends_in_a_sentence_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, existing: bool
) -> None:
    out = tmp_path / "plain"
    if existing:
        export_lora(adapted(BY_NAME["lora-by-share"]), out)
    before = contents(out) if existing else None

    def full(*_: object, **__: object) -> None:
        raise error

    if isinstance(error, OSError):
        monkeypatch.setattr(LoraConfig, "save_pretrained", full)
    else:
        monkeypatch.setattr(lora, "save_file", full)
    with pytest.raises(ExportError, match=r"cannot write .*plain: .*No space left.*free some space.*Nothing there was"):
        export_lora(adapted(BY_NAME["cps-lora"]), out, overwrite=existing)
    assert (contents(out) if out.exists() else None) == before
    assert [path.name for path in tmp_path.iterdir()] == (["plain"] if existing else [])


def test_a_folder_above_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ExportError, match=r"Permission denied; it is written beside its place and renamed"):
        export_lora(adapted(BY_NAME["cps-lora"]), tmp_path / "plain")


@pytest.mark.parametrize("name", ["loop", "x" * 300])
def test_a_path_that_no_folder_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ExportError, match="cannot be the folder of an export"):
        export_lora(adapted(BY_NAME["g-lora"]), tmp_path / name)


def test_a_place_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write .*below: Not a directory"):
        export_lora(adapted(BY_NAME["g-lora"]), tmp_path / "file" / "below")


def test_an_export_to_a_link_fills_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export_lora(adapted(BY_NAME["g-lora"]), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / WEIGHTS).exists()


def test_a_folder_that_holds_anything_is_refused(tmp_path: Path) -> None:
    model, out = adapted(BY_NAME["g-lora"]), tmp_path / "plain"
    out.mkdir()
    export_lora(model, out)  # an empty one is not
    before = contents(out)
    with pytest.raises(ExportError, match=r"is not empty \(found .*replace an earlier export with --overwrite"):
        export_lora(model, out)
    assert contents(out) == before
    export_lora(model, out, rank=1, overwrite=True)
    assert contents(out) != before
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file is a file; give a folder"):
        export_lora(model, tmp_path / "file", overwrite=True)


@pytest.mark.parametrize("stranger", ["notes.txt", "adapter"])
def test_overwriting_takes_nothing_but_an_export_away(tmp_path: Path, stranger: str) -> None:
    model, out = adapted(BY_NAME["g-lora"]), tmp_path / "plain"
    export_lora(model, out)
    (out / stranger).mkdir()
    with pytest.raises(ExportError, match=f"holds {stranger}, which is no part of an export"):
        export_lora(model, out, overwrite=True)
    assert (out / stranger).exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("from_folder", [False, True])
def test_factors_that_are_not_finite_are_refused(tmp_path: Path, value: float, last: bool, from_folder: bool) -> None:
    model = adapted(BY_NAME["hybrid"])
    name, layer = adapted_layers(model, "default")[-1 if last else 0]
    with torch.no_grad():
        layer.localized_global_B["default"].weight[0, 0] = value
    model.save_pretrained(tmp_path / "adapter")
    said = ".localized_global_B.weight holds NaN" if from_folder else " hold NaN"
    error = AdapterFileError if from_folder else ExportError
    with pytest.raises(error, match=f"{name.removeprefix('base_model.model.')}{said} or infinite"):
        export_lora(tmp_path / "adapter" if from_folder else model, tmp_path / "out", rank=None if last else 2)
    assert not (tmp_path / "out").exists()


def test_finite_factors_whose_product_is_not(tmp_path: Path) -> None:
    model = adapted(BY_NAME["lora-by-share"])
    for _, layer in adapted_layers(model, "default"):
        with torch.no_grad():
            layer.localized_global_B["default"].weight.fill_(3e37)
            layer.localized_global_A["default"].weight.fill_(3e37)
    report = export_lora(model, tmp_path / "out")  # 1e75 is finite where it is measured, in float64
    assert report.max_error < 1e-6
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "out" / WEIGHTS).values())


def test_when_the_new_one_cannot_take_its_place_the_old_one_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "plain"
    export_lora(adapted(BY_NAME["lora-by-share"]), out)
    before = contents(out)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_lora(adapted(BY_NAME["cps-lora"]), out, overwrite=True)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
