"""Where an export may go: an empty place, or, when it is to be replaced, an earlier export and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from localora.adapter.card import CARD, EXPORTED
from localora.errors import LocaloraError
from localora.files import StorageError, recover, written_folder

# What an export consists of, whichever its kind. --overwrite replaces folders of these files and no others.
OWN_FILES = (
    CARD, "adapter_config.json", "adapter_model.safetensors", "Modelfile", "*.gguf",
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
)  # fmt: skip


class ExportError(LocaloraError, ValueError):
    """What cannot be exported, or not there; the message says what to do instead."""


def check_reachable(out: Path) -> None:
    """Raise ExportError for a path that no folder can have: a name that is too long, a link to itself."""
    try:
        out.resolve().exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ExportError(f"{str(out)!r} cannot be the folder of an export: {error}") from error


def check_target(out: Path, overwrite: bool) -> None:
    """Whether an export may be written to `out`, before any work is done.

    Raises:
        ExportError: `out` is a file, or holds anything; with `overwrite`, anything but an earlier export. So no adapter
            is lost that was only trained, and never exported.
    """
    check_reachable(out)
    recover(out)
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; give a folder to export to")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if names and not overwrite:
        raise ExportError(
            f"{out} is not empty (found {names[0]}); export to another folder, or replace an earlier export with "
            "--overwrite (overwrite=True)"
        )
    if names and not _is_export(out):
        raise ExportError(
            f"{out} holds no earlier export (no {CARD} that says so), and what it holds would be lost; export to "
            "another folder"
        )
    strangers = [name for name in names if not _is_own(out / name)]
    if strangers:
        raise ExportError(
            f"{out} holds {strangers[0]}, which is no part of an export, and would be lost; export to another folder"
        )


def _is_export(folder: Path) -> bool:
    card = folder / CARD
    return card.is_file() and EXPORTED in card.read_text(encoding="utf-8", errors="replace")


def _is_own(path: Path) -> bool:
    return path.is_file() and any(fnmatch(path.name, pattern) for pattern in OWN_FILES)


@contextmanager
def written_whole(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yields an empty folder to write into, which becomes `out` at the end; on an error `out` stays as it was.

    Raises:
        ExportError: as :func:`check_target`, or the disk is full, read-only or otherwise in the way.
    """
    check_target(out, overwrite)
    try:
        with written_folder(out, lambda: check_target(out, overwrite)) as partial:
            yield partial
    except StorageError as error:
        raise ExportError(str(error)) from error
