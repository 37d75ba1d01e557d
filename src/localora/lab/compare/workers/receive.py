"""What a run wrote elsewhere becomes its folder here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from localora.files import make_folder, write_file
from localora.lab.training.folder import remove

RUN = "run"  # holds the record: it comes last, in one step


def receive(files: Mapping[str, memoryview], folder: Path) -> None:
    """Put `files` (relative path -> contents) into a run's folder. Until all are there, it has no finished record.

    What an earlier try left under the same name goes, so that the folder never holds parts of two runs.
    """
    incoming = folder / ".incoming"
    remove(incoming)
    make_folder(incoming)
    for name, contents in files.items():
        path = incoming / name
        make_folder(path.parent)
        write_file(path, bytes(contents))
    for path in sorted(incoming.iterdir(), key=lambda path: path.name == RUN):
        remove(folder / path.name)
        path.rename(folder / path.name)
    incoming.rmdir()
