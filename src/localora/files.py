"""Files and folders that are there whole or not at all: written beside, brought to the disk, renamed.

A process that is killed on the way leaves the target as it was, and beside it a hidden `.NAME.partial-…`, which may be
deleted. Where an old folder is replaced, it is first renamed to `.NAME.old-…`: killed between the two renames, both are
there and complete.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from localora.errors import LocaloraError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PLACE = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EBUSY)
_NEARLY_FULL = 2**20  # bytes


class StorageError(LocaloraError, OSError):
    """A disk that is full, read-only or gone."""


def write_file(path: Path, contents: str | bytes) -> None:
    """Make or replace a file: a reader, or a crash, sees the old one or the new one.

    Raises:
        StorageError: it cannot be written; the old one is as it was.
    """
    data = contents.encode("utf-8") if isinstance(contents, str) else contents
    partial = _beside(path)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        to_disk(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {reason(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises:
        StorageError: they cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {reason(error)}") from error


@contextmanager
def written_folder(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a new folder to write into, which takes the place of `path` at the end; an error leaves `path` as it was.

    `check` may refuse `path` just before it is replaced, for it took a while.

    Raises:
        StorageError: it cannot be written.
    """
    path = path.resolve()
    partial = _beside(path)
    old = partial.with_name(partial.name.replace(".partial-", ".old-"))
    try:
        partial.mkdir(parents=True)
        yield partial
        for written in (*partial.rglob("*"), partial):
            to_disk(written)
        check()
        if path.is_dir():
            path.rename(old)
        try:
            partial.rename(path)
        except BaseException:  # also when interrupted
            if old.is_dir():
                old.rename(path)
            raise
        to_disk(path.parent)
    except Exception as error:
        said = storage_reason(error, path.parent)
        if said is None:
            raise
        raise StorageError(f"cannot write {path}: {said}. Nothing there was changed") from error
    finally:
        for left in (partial, old) if path.is_dir() else (partial,):
            shutil.rmtree(left, ignore_errors=True)


def storage_reason(error: BaseException, folder: Path) -> str | None:
    """Why the disk of `folder` is to blame for an error, or None where it is not.

    Writers in C++ raise a RuntimeError that does not say why; there the space that is left does.
    """
    if isinstance(error, StorageError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _PLACE:
        return reason(error)
    if isinstance(error, SafetensorError | RuntimeError | OSError) and not isinstance(error, LocaloraError):
        try:
            full = "No space left" in str(error) or shutil.disk_usage(folder).free < _NEARLY_FULL
        except OSError:
            return None
        return reason(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) if full else None
    return None


def reason(error: OSError) -> str:
    """What the operating system says, and what to do."""
    said = error.strerror or str(error)
    if error.errno in _FULL:
        return f"{said}; free some space, or choose another disk"
    if error.errno in _PLACE:
        return f"{said}; it is written beside its place and renamed, so the folder above it must be writable"
    return said


def to_disk(path: Path) -> None:
    """Return once a file's or a folder's contents are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
