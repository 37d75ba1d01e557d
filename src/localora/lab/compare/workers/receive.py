"""What a run wrote elsewhere becomes its folder here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from localora.lab.training.folder import remove

RUN = "run"  # holds the record: it comes last, in one step


def receive(files: Mapping[str, memoryview], folder: Path) -> None:
    """Put `files` (relative path -> contents) into a run's folder. Until all are there, it has no finished record.

    What an earlier try left under the same name goes, so that the folder never holds parts of two runs.
    """
    incoming = folder / ".incoming"
    remove(incoming)
    incoming.mkdir(parents=True)
    for name, contents in files.items():
        path = incoming / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
    for path in sorted(incoming.iterdir(), key=lambda path: path.name == RUN):
        remove(folder / path.name)
        path.rename(folder / path.name)
    incoming.rmdir()
