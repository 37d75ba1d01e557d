"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from localora.files import (
    KeyTwiceError,
    StorageError,
    make_folder,
    storage_reason,
    unique_keys,
    write_file,
    written_folder,
)


def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "f"
    write_file(target, "old")
    synced: list[bytes] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        synced.append(target.read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    write_file(target, b"new")
    assert synced == [b"old", b"new"]  # the contents before the rename, the folder after it
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "free some space, or choose another disk"), (errno.EROFS, "must be writable")]
)
def test_a_disk_that_refuses_is_named_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    write_file(tmp_path / "f", "old")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "part").write_text("old")

    def refuses(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuses)
    with pytest.raises(StorageError, match=rf"cannot write .*f: {os.strerror(code)}; .*{remedy}"):
        write_file(tmp_path / "f", "new")
    with (
        pytest.raises(StorageError, match=rf"cannot write .*d: {os.strerror(code)}; .*{remedy}.* Nothing there was"),
        written_folder(tmp_path / "d") as folder,
    ):
        (folder / "part").write_text("new")
    assert (tmp_path / "f").read_text() == (tmp_path / "d" / "part").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f"]


def test_an_error_of_the_writer_passes_and_leaves_the_folder(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "part").write_text("new")
        raise KeyError("the writer's own")

    with written_folder(tmp_path / "d") as folder:
        (folder / "part").write_text("old")
    with pytest.raises(KeyError), written_folder(tmp_path / "d") as folder:
        fails(folder)
    assert (tmp_path / "d" / "part").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_writer_in_c_that_does_not_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save on a full disk: a RuntimeError of its own, and no space left."""
    with pytest.raises(RuntimeError, match="file write failed"), written_folder(tmp_path / "d"):
        raise RuntimeError("file write failed")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(StorageError, match="No space left on device"), written_folder(tmp_path / "d"):
        raise RuntimeError("file write failed")


def test_a_place_without_room_is_not_called_full_where_something_else_is_wrong(tmp_path: Path) -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert storage_reason(missing, Path("/proc")) is None  # which has no room at all
    assert "No space left" in str(storage_reason(RuntimeError("iostream error"), Path("/proc")))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot make the folder .*/file/below: "):
        make_folder(tmp_path / "file" / "below")


def test_keys_given_twice_are_found_without_comparing_each_with_each() -> None:
    """Twenty thousand keys of a stranger's file took 20 s."""
    compared: list[int] = []

    class Key(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(1)
            return str.__eq__(self, other)

    pairs: list[tuple[str, object]] = [(Key(f"key{i}"), i) for i in range(2000)]
    assert len(unique_keys(pairs)) == 2000
    with pytest.raises(KeyTwiceError, match="the key 'key7' is given twice"):
        unique_keys([*pairs, (Key("key7"), 7)])
    assert len(compared) < 5 * len(pairs)
