"""Output folders: what is refused, before any work, and what is left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from localora.lab.training.folder import COMPLETE, FolderError, open_run_folder
from localora.lab.training.lock import check_unlocked


def finished_run(path: Path, *, checkpoint: int | None = None) -> Path:
    path.mkdir()
    (path / "run.json").write_text("{}")
    (path / "adapter").mkdir()
    if checkpoint is not None:
        folder = path / "checkpoints" / f"checkpoint-{checkpoint}"
        folder.mkdir(parents=True)
        (folder / COMPLETE).write_text("")
    return path


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    folder = open_run_folder(tmp_path / "a" / "b")
    assert folder.path.is_dir()
    assert list(folder.path.iterdir()) == []  # the write probe is gone


def test_the_result_is_the_model_where_there_is_one(tmp_path: Path) -> None:
    folder = open_run_folder(finished_run(tmp_path / "run"), overwrite=True)
    assert folder.result == tmp_path / "run" / "adapter"
    folder.model.mkdir()
    assert folder.result == tmp_path / "run" / "model"
    folder.clear()
    assert not folder.model.exists()


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"cannot write to .*file/out \(Not a directory\).*--out"):
        open_run_folder(tmp_path / "file" / "out")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"cannot write to .*file"):
        open_run_folder(tmp_path / "file")


def test_a_folder_with_a_run_needs_a_decision(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "run", checkpoint=3)
    with pytest.raises(FolderError, match=r"already holds a run; .* --resume, .* --overwrite"):
        open_run_folder(path)
    assert open_run_folder(path, resume=True).last_checkpoint() == path / "checkpoints" / "checkpoint-3"
    assert open_run_folder(path, overwrite=True).holds_run()  # opening deletes nothing


def test_both_decisions_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="exclude each other"):
        open_run_folder(tmp_path, overwrite=True, resume=True)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="holds no run to resume"):
        open_run_folder(tmp_path / "new", resume=True)


def test_an_incomplete_checkpoint_does_not_count(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "run", checkpoint=20)
    (path / "checkpoints" / "checkpoint-100").mkdir()  # not ended: the write was cut off
    last = open_run_folder(path, resume=True).last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-20"


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "run", checkpoint=20)
    shutil.copytree(path / "checkpoints" / "checkpoint-20", path / "checkpoints" / "checkpoint-100")
    last = open_run_folder(path, resume=True).last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-100"


def test_a_folder_of_other_things_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FolderError, match=r"is not empty and holds no run \(found thesis.tex\)"):
        open_run_folder(tmp_path, overwrite=True)


def test_overwrite_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "run", checkpoint=1)
    (path / "notes.txt").write_text("mine")
    open_run_folder(path, overwrite=True).clear()
    assert [p.name for p in path.iterdir()] == ["notes.txt"]


def test_a_full_disk_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FolderError, match=r"has 3 MiB free and the run needs about 256 MiB"):
        open_run_folder(tmp_path / "run")


def test_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    path, precious = finished_run(tmp_path / "run", checkpoint=1), tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("mine")
    (path / "lora").symlink_to(precious)
    open_run_folder(path, overwrite=True).clear()
    assert not (path / "lora").is_symlink()
    assert (precious / "thesis.tex").read_text() == "mine"


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FolderError, match=r"cannot use .*File name too long.*choose another folder"):
        check_unlocked(tmp_path / ("x" * 300))
    with pytest.raises(FolderError, match=r"cannot write to .*choose another folder"):
        open_run_folder(tmp_path / "loop")
    with pytest.raises(FolderError, match=r"cannot write to .*embedded null byte.*choose another folder"):
        open_run_folder(f"{tmp_path}/a\0b")
