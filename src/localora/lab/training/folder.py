"""The folder of a run: checked before any work starts, never overwritten unasked.

run.json        the record            loss.png, placement.png   pictures
adapter/        the trained adapter   lora/                     the exact plain-LoRA copy
model/          the trained model, where a method has no adapter
checkpoints/    what --resume continues from
.lock           held by the process that works here
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from localora.errors import LocaloraError

LOCK = ".lock"
COMPLETE = "complete"  # the file that ends a checkpoint
TENSORBOARD = "tensorboard"  # a folder of a run
MIN_FREE_BYTES = 256 * 2**20  # a small adapter, its export and two checkpoints with optimizer state


class FolderError(LocaloraError, ValueError):
    """An output folder that cannot be used; the message says what to do instead."""


class RunFolder:
    """The places in it; `model` is in the place of `adapter` where a method has none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "run.json"
        self.adapter, self.model, self.lora = path / "adapter", path / "model", path / "lora"
        self.checkpoints = path / "checkpoints"
        self.loss_picture, self.placement_picture = path / "loss.png", path / "placement.png"

    @property
    def result(self) -> Path:
        """What a finished run left: its adapter, or its model where it has none."""
        return self.model if self.model.exists() else self.adapter

    @property
    def owned(self) -> tuple[Path, ...]:
        """All that a run writes; --overwrite removes these and nothing else."""
        files = (self.record, self.loss_picture, self.placement_picture)
        return (*files, self.adapter, self.model, self.lora, self.checkpoints, self.path / TENSORBOARD)

    def holds_run(self) -> bool:
        return self.record.exists() or self.checkpoints.exists()

    def last_checkpoint(self) -> Path | None:
        """The complete checkpoint with the most steps."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if _number(p).isdecimal() and (p / COMPLETE).exists()]
        return max(found, key=steps_of, default=None)

    def how_to_go_on(self) -> str:
        """In words, for a run that stopped."""
        if self.last_checkpoint() is not None:
            return "--resume continues it from its last checkpoint"
        if self.holds_run():
            return "it has no checkpoint yet (training.checkpoint_every); --overwrite starts it anew"
        return "nothing was written yet; start it again"

    def sweep(self) -> None:
        """Remove what a killed process had begun to write."""
        for pattern in (".*.partial-*", ".*.old-*"):
            for path in self.path.glob(pattern):
                remove(path)

    def clear(self) -> None:
        """Remove what an earlier run left here."""
        for path in self.owned:
            remove(path)


def open_run_folder(path: str | Path, *, overwrite: bool = False, resume: bool = False) -> RunFolder:
    """Create the folder if needed and check that this run may write into it. Deletes nothing.

    Raises:
        FolderError: it cannot be written, is short of space, holds a run (without `overwrite` or `resume`) or other
            files, or holds none to resume.
    """
    folder = RunFolder(Path(path))
    if overwrite and resume:
        raise FolderError("--overwrite and --resume exclude each other: one starts anew, the other continues")
    if resume and not folder.record.exists():
        raise FolderError(f"{folder.path} holds no run to resume; leave --resume out to start one")
    if folder.holds_run() and not (overwrite or resume):
        raise FolderError(
            f"{folder.path} already holds a run; continue it with --resume, replace it with --overwrite, "
            "or choose another folder with --out"
        )
    check_writable(folder.path)
    strangers = [p.name for p in folder.path.iterdir() if p not in folder.owned and not p.name.startswith(".")]
    if strangers and not folder.holds_run():
        raise FolderError(
            f"{folder.path} is not empty and holds no run (found {strangers[0]}); choose another folder with --out"
        )
    check_space(folder.path, MIN_FREE_BYTES)
    return folder


def steps_of(checkpoint: Path) -> int:
    return int(_number(checkpoint))


def _number(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix("checkpoint-")


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():  # what a link leads to is not ours
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_space(path: Path, needed: int) -> None:
    """Raise FolderError when the disk of `path` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(path).free
    if free < needed:
        raise FolderError(
            f"{path} has {free / 2**20:.0f} MiB free and the run needs about {needed / 2**20:.0f} MiB; "
            "free some space or choose another disk with --out"
        )


def check_writable(path: Path) -> None:
    """Make the folder, if it is not there; raise FolderError when it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(prefix=".localora-", dir=path)
        os.close(handle)
        os.unlink(probe)
    except (OSError, ValueError) as error:  # a null byte in the name is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise FolderError(f"cannot write to {path} ({reason}); choose another folder with --out") from error
