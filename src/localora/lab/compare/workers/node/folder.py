"""A run's folder on a node."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "localora-run-"
YOUNG_SECONDS = 60.0  # a folder may be so old before its owner has locked it


@contextmanager
def own_folder() -> Iterator[Path]:
    """A temporary folder, locked while its owner lives. What owners that were killed left behind is removed first."""
    sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as temporary:
        handle = os.open(temporary, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield Path(temporary)
        finally:
            os.close(handle)


def sweep(root: Path) -> None:
    """Remove the folders of runs whose owner does not live any more."""
    for folder in root.glob(f"{PREFIX}*"):
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError:  # another user's, or gone by now
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(handle).st_mtime > YOUNG_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # its owner lives
            pass
        finally:
            os.close(handle)
