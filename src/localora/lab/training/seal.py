"""A checkpoint's last file: it says that all others are on the disk, and what they hold, so that damage is found."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from localora.files import to_disk, write_file
from localora.lab.training.folder import COMPLETE, FolderError

CHUNK = 2**22  # bytes read at a time


def seal(checkpoint: Path) -> None:
    """Bring all that is in a checkpoint to the disk, then say so."""
    files = _files(checkpoint)
    for path in (*checkpoint.iterdir(), checkpoint):
        to_disk(path)
    write_file(
        checkpoint / COMPLETE, json.dumps({path.relative_to(checkpoint).as_posix(): _sum(path) for path in files})
    )


def check_seal(checkpoint: Path) -> None:
    """Refuse a checkpoint of which a file is missing or is no longer as it was written.

    Raises:
        FolderError: names the file.
    """
    text = (checkpoint / COMPLETE).read_text(encoding="utf-8", errors="replace")
    try:
        written = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        written = {COMPLETE: None}
    here = {path.relative_to(checkpoint).as_posix() for path in _files(checkpoint)}
    for name in sorted(written.keys() | here):
        if name not in here or name not in written or _sum(checkpoint / name) != written[name]:
            raise FolderError(
                f"{checkpoint} cannot be resumed: {name} is missing, is new or is not as it was written. Put it back, "
                "or start the run anew with --overwrite"
            )


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)


def _sum(path: Path) -> list[int]:
    """Size and CRC-32: of damage, not of deceit."""
    size = total = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size, total = size + len(chunk), zlib.crc32(chunk, total)
    return [size, total]
