"""Files of runs between machines: how they arrive, what tells them apart, and what the killed leave behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from localora.lab.compare.workers.cluster import receive
from localora.lab.compare.workers.node import (
    DIGEST_BYTES,
    PREFIX,
    YOUNG_SECONDS,
    digest_all,
    digest_file,
    own_folder,
    sweep,
)


def files(**contents: bytes) -> dict[str, memoryview]:
    return {name.replace("__", "/"): memoryview(value) for name, value in contents.items()}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_replaces_what_an_earlier_try_left(tmp_path: Path) -> None:
    receive(files(log=b"first", run__record=b"running", run__export__weights=b"old"), tmp_path)
    (tmp_path / "failure.json").write_bytes(b"kept")
    receive(files(log=b"second", run__record=b"finished", run__empty=b""), tmp_path)
    assert tree(tmp_path) == {
        "failure.json": b"kept",
        "log": b"second",
        "run/record": b"finished",
        "run/empty": b"",
    }


def test_a_run_that_wrote_nothing_leaves_an_earlier_one_alone(tmp_path: Path) -> None:
    receive(files(log=b"first", run__record=b"running"), tmp_path)
    receive(files(log=b"second"), tmp_path)
    assert tree(tmp_path) == {"log": b"second", "run/record": b"running"}


def test_the_record_comes_last_and_with_all_that_belongs_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    rename = Path.rename

    def noting(self: Path, target: Path) -> Path:
        assert not (tmp_path / "run").exists()
        moved.append(target.name)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", noting)
    receive(files(run__record=b"1", run__adapter__weights=b"2", update=b"3", zlog=b"4"), tmp_path)
    assert moved == ["update", "zlog", "run"]


def test_files_received_in_part_leave_no_record_and_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            receive(files(run__record=b"half"), tmp_path)
    assert not (tmp_path / "run").exists()
    receive(files(run__other=b"whole"), tmp_path)
    assert tree(tmp_path) == {"run/other": b"whole"}


def test_digests_tell_names_sizes_and_contents_apart(tmp_path: Path) -> None:
    for name in ("a/x.py", "a/b/y.py", "a/.hidden/z.py", "a/data.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    assert set(digest_all(tmp_path / "a")) == {"x.py", "b/y.py", "data.bin"}
    assert digest_all(tmp_path / "a/x.py") == {".": digest_file(tmp_path / "a/data.bin")}
    before = digest_all(tmp_path / "a")
    (tmp_path / "a/data.bin").write_bytes(b"2")
    assert digest_all(tmp_path / "a") != before


def test_of_large_files_the_head_and_the_size_count(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one", "longer", "other tail", "other head")]
    for path, extra, place in zip(paths, (2, 3, 2, 2), (None, None, DIGEST_BYTES + 1, DIGEST_BYTES - 1), strict=True):
        with path.open("wb") as file:
            file.truncate(DIGEST_BYTES + extra)
            if place is not None:
                file.seek(place)
                file.write(b"x")
    one, longer, tail, head = [digest_file(path) for path in paths]
    assert one == tail
    assert len({one, longer, head}) == 3


def test_folders_of_the_dead_are_removed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old, young, stranger = (tmp_path / name for name in (f"{PREFIX}old", f"{PREFIX}young", "stranger"))
    for folder in (old, young, stranger):
        (folder / "checkpoints").mkdir(parents=True)
    with own_folder() as living:
        for folder in (old, stranger, living):
            os.utime(folder, (0, os.stat(folder).st_mtime - 2 * YOUNG_SECONDS))
        sweep(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([living, young, stranger])
    assert not living.exists()
