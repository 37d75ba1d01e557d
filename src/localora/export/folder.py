"""A folder of several files that belong together: it is there whole, as it was, or not at all.

Everything is written into a new folder beside the target, brought to the disk, and renamed. A process that is killed
leaves the target as it was and, beside it, a hidden folder `.NAME.partial-…`, which may be deleted. When an old export
is replaced, it is first renamed to `.NAME.old-…`; killed between the two renames, both are there and complete.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError

from localora.errors import LocaloraError

# What an export consists of, whichever its kind. --overwrite replaces folders of these files and no others.
OWN_FILES = (
    "adapter_config.json", "adapter_model.safetensors", "README.md", "Modelfile", "*.gguf",
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
)  # fmt: skip


_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)


class ExportError(LocaloraError, ValueError):
    """What cannot be exported, or not there; the message says what to do instead."""


def check_target(out: Path, overwrite: bool) -> None:
    """Whether an export may be written to `out`, before any work is done.

    Raises:
        ExportError: `out` is a file, or holds anything; with `overwrite`, anything but an earlier export.
    """
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; give a folder to export to")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if names and not overwrite:
        raise ExportError(
            f"{out} is not empty (found {names[0]}); export to another folder, or replace an earlier export with "
            "--overwrite (overwrite=True)"
        )
    strangers = [name for name in names if not _is_own(out / name)]
    if strangers:
        raise ExportError(
            f"{out} holds {strangers[0]}, which is no part of an export, and would be lost; export to another folder"
        )


def _is_own(path: Path) -> bool:
    return path.is_file() and any(fnmatch(path.name, pattern) for pattern in OWN_FILES)


@contextmanager
def written_whole(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yields an empty folder to write into, which becomes `out` at the end; on an error `out` stays as it was.

    Raises:
        ExportError: as :func:`check_target`, or the disk is full, read-only or otherwise in the way.
    """
    check_target(out, overwrite)
    out = out.resolve()
    unique = secrets.token_hex(4)
    partial, old = out.with_name(f".{out.name}.partial-{unique}"), out.with_name(f".{out.name}.old-{unique}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.iterdir(), partial):
            _to_disk(path)
        check_target(out, overwrite)  # it took a while
        if out.is_dir():
            out.rename(old)
        try:
            partial.rename(out)
        except OSError:
            if old.is_dir():
                old.rename(out)
            raise
        _to_disk(out.parent)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"cannot write {out}: {_reason(error)}. Nothing there was changed") from error
    finally:
        for left in (partial, old) if out.is_dir() else (partial,):
            shutil.rmtree(left, ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError | SafetensorError) -> str:
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    if isinstance(error, OSError) and error.errno in _PLACE:
        return f"{reason}; an export is written beside its folder and renamed, so the folder above must be writable"
    return f"{reason}; free some space, or export to another disk" if "space" in reason.lower() else reason
