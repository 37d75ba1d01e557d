"""What a file or a folder holds, in a few characters, to tell whether two machines hold the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

DIGEST_BYTES = 16 * 2**20


def digest_file(path: Path) -> str:
    """Of its size and its first 16 MiB: the weights of a large model are not read whole before every run."""
    with path.open("rb") as file:
        head = file.read(DIGEST_BYTES)
    return hashlib.sha256(b"%d\n" % path.stat().st_size + head).hexdigest()


def digest_all(path: Path, pattern: str = "*") -> dict[str, str]:
    """Digest of each file in a folder by its name relative to it, hidden ones left out; of a file, by the name `.`."""
    if path.is_file():
        return {".": digest_file(path)}
    names = {file.relative_to(path): file for file in sorted(path.rglob(pattern)) if file.is_file()}
    return {
        name.as_posix(): digest_file(file)
        for name, file in names.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def digest_sources(package: Path) -> str:
    """Of all Python files of a package."""
    return hashlib.sha256(repr(sorted(digest_all(package, "*.py").items())).encode()).hexdigest()
