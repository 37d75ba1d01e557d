"""A checkpoint of which anything is missing, cut or changed is refused by the name of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from localora.lab.training.folder import COMPLETE, FolderError
from localora.lab.training.seal import check_seal, seal

DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt"),
    "cut": (lambda c: (c / "optimizer.pt").write_bytes(b"mom"), "optimizer.pt"),
    "changed": (lambda c: (c / "optimizer.pt").write_bytes(b"Moments"), "optimizer.pt"),
    "changed below": (lambda c: (c / "of" / "rank-1").write_bytes(b""), "of/rank-1"),
    "a file too many": (lambda c: (c / "adapter_model.bin").write_bytes(b"x"), "adapter_model.bin"),
    "no seal": (lambda c: (c / COMPLETE).write_text("{}"), "of/rank-1"),
    "an empty seal": (lambda c: (c / COMPLETE).write_text(""), COMPLETE),
    "half a seal": (lambda c: (c / COMPLETE).write_text('{"optimizer.pt": [7'), COMPLETE),
    "a seal of another kind": (lambda c: (c / COMPLETE).write_text("[1]"), COMPLETE),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-4"
    (folder / "of").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"moments")
    (folder / "of" / "rank-1").write_bytes(b"state")
    seal(folder)
    return folder


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(checkpoint: Path, name: str) -> None:
    damage, file = DAMAGE[name]
    damage(checkpoint)
    with pytest.raises(
        FolderError, match=rf"checkpoint-4 cannot be resumed: {file} is missing, is new or is not as it"
    ):
        check_seal(checkpoint)


def test_what_is_as_it_was_written_passes(checkpoint: Path) -> None:
    check_seal(checkpoint)
