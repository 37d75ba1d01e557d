"""Files and folders that are there whole or not at all: written beside, brought to the disk, renamed.

A process that is killed on the way leaves the target as it was, and beside it a hidden `.NAME.partial-…`. Where an old
folder is replaced, it is first renamed to `.NAME.old-…`: killed between the two renames, both are there and complete.
:func:`recover` deletes the one and brings the other back. A writer holds a lock on its partial folder, which falls with
its process, so that nothing is taken away under one that is at work.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from localora.errors import LocaloraError

try:
    import fcntl
except ImportError:  # Windows, where what a killed process left stays until somebody deletes it
    fcntl = None  # type: ignore[assignment]

PARTIAL, OLD = ".partial-", ".old-"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PLACE = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EBUSY)
_NEARLY_FULL = 2**20  # bytes


class StorageError(LocaloraError, OSError):
    """A disk that is full, read-only or gone."""


class KeyTwiceError(LocaloraError, ValueError):
    """A JSON object that says a thing twice."""


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
    old = partial.with_name(partial.name.replace(PARTIAL, OLD))
    lock: int | None = None
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:  # whatever the reason: the caller chose a place where no folder can be
            raise StorageError(reason(error)) from error
        lock = _lock(partial)
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
        if lock is not None:
            os.close(lock)


def recover(path: Path) -> None:
    """Clear away what a killed :func:`written_folder` of this path left; an old folder comes back to an empty place.

    What another process is writing now is left alone, and so is what cannot be removed.
    """
    path = path.resolve()
    beginnings = tuple(f".{path.name}{kind}" for kind in (PARTIAL, OLD))
    with suppress(OSError):
        left = {
            p.name.rpartition("-")[2] for p in path.parent.iterdir() if p.name.startswith(beginnings) and p.is_dir()
        }
        for token in left:
            partial, old = (path.with_name(f"{beginning}{token}") for beginning in beginnings)
            lock = _lock(partial)
            if lock is None and partial.is_dir():
                continue  # its writer is at work
            if old.is_dir() and not path.exists():
                old.rename(path)
            for leftover in (partial, old):
                shutil.rmtree(leftover, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """The descriptor of a folder that is now locked by this process; None where another one holds it, or nobody can."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def storage_reason(error: BaseException, folder: Path) -> str | None:
    """Why the disk of `folder` is to blame for an error, or None where it is not.

    Writers in C++ raise a RuntimeError that does not say why; there the space that is left does.
    """
    if isinstance(error, StorageError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return reason(error) if error.errno in _PLACE else None
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
    return path.with_name(f".{path.name}{PARTIAL}{secrets.token_hex(4)}")


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of a JSON object, as `object_pairs_hook`: a key that is given twice would lose one of its values without a word.

    Raises:
        KeyTwiceError: names the first such key.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise KeyTwiceError(f"the key {key!r} is given twice; which of its values is meant?")
            seen.add(key)
    return values
