"""One process a folder: whoever writes into a run's or a comparison's folder holds its lock."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from localora.files import StorageError, reason, write_file
from localora.lab.training.folder import LOCK, FolderError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder. It falls with its process, however that ends.

    Raises:
        FolderError: another process holds it; the message says which.
        StorageError: the folder cannot be written.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FolderError(
            f"{folder} is in use by another process{_holder(folder)}; wait until it is done, or stop it"
        ) from None
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {reason(error)}") from error
    try:
        # The lock file itself cannot say who: older versions of filelock empty it whenever they try to lock it.
        write_file(_holder_file(folder), json.dumps({"process": os.getpid(), "host": platform.node()}))
        yield
    finally:
        lock.release()
        _holder_file(folder).unlink(missing_ok=True)


def check_unlocked(folder: Path) -> None:
    """Refuse a folder that another process is working in, without taking it.

    Raises:
        FolderError, StorageError: as :func:`locked`.
    """
    try:
        held = (folder / LOCK).exists()
    except OSError as error:  # a name that is too long, a link to itself
        raise FolderError(f"cannot use {folder} ({reason(error)}); choose another folder with --out") from error
    if held:
        with locked(folder):
            pass


def check_there(folder: Path) -> None:
    """Raise FolderError when a folder that this process has locked was removed or replaced."""
    if not (folder / LOCK).exists():
        raise FolderError(f"{folder} was removed while it was being written into; what was in it is lost")


def _holder(folder: Path) -> str:
    try:
        known = json.loads(_holder_file(folder).read_text(encoding="utf-8"))
        return f" (process {known['process']} on {known['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # it has only just taken the lock


def _holder_file(folder: Path) -> Path:
    return folder / f"{LOCK}-holder"
