"""What a node of a cluster does: says whether it can do a plan's runs, does one, and hands back what it wrote.

This module travels there by value, for importing localora takes long. So nothing here may import the rest of it: the
standard library and NumPy only.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

PREFIX = "localora-run-"  # of the temporary folders of runs
YOUNG_SECONDS = 60.0  # a folder may be so old before its owner has locked it
POLL_SECONDS = 0.1
DIGEST_BYTES = 16 * 2**20

Files = dict[str, npt.NDArray[np.uint8]]  # path relative to the run's folder -> bytes, which Ray does not copy
Result = tuple[str, list[str], int, Files]  # the node's name, why it cannot do the run, the exit code, what it wrote


class Needs(TypedDict):
    """What a plan needs of every node; made by :func:`localora.lab.compare.workers.nodes.needs_of`."""

    versions: dict[str, str]  # of the packages that decide what a run computes
    directory: str  # where the plan's relative paths start
    files: dict[str, dict[str, str]]  # path as the plan names it -> digest of each file


def run_remotely(job: str, module: str, needs: Needs, environment: dict[str, str]) -> Result:
    """`python -m MODULE JOB.json PARENT` on this node. A node that is not fit does nothing, and says why."""
    # Ray cancels by this interrupt; a cluster that was started in a shell's background ignores it, and so would we.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    node = socket.gethostname()
    if problems := node_problems(needs):
        return node, problems, 1, {}
    with own_folder() as folder:
        (folder / "job.json").write_text(job, encoding="utf-8")
        with (folder / "log.txt").open("wb", buffering=0) as log:
            log.write(f"on {node}\n".encode())
            command = [sys.executable, "-m", module, str(folder / "job.json"), str(os.getpid())]
            process = subprocess.Popen(
                command,
                cwd=start_folder(needs["directory"]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )
            try:
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)  # Ray cancels by an interrupt of Python code; it would not end a wait()
            finally:
                process.kill()
                process.wait()
        return node, [], process.returncode, _written(folder)


def _written(folder: Path) -> Files:
    """All but checkpoints, which only this node could have continued from."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): np.fromfile(path, dtype=np.uint8)
        for name, path in files.items()
        if "checkpoints" not in name.parts
    }


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


def node_problems(needs: Needs) -> list[str]:
    """What is wrong with this node, one line each."""
    return [*_wrong_versions(needs["versions"]), *_wrong_files(needs)]


def start_folder(directory: str) -> str | None:
    """A plan without relative paths does not need `directory` on the node; then the working folder is any."""
    return directory if os.path.isdir(directory) else None


def _wrong_versions(wanted: dict[str, str]) -> list[str]:
    return [
        f"it has {name} {found}, here it is {expected}; methods are compared on the same versions"
        for name, expected in wanted.items()
        if (found := release(name)) != expected
    ]


def release(package: str) -> str:
    """The installed version, with the build's label (+cu128, +cpu): runs of two builds are not compared either."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _wrong_files(needs: Needs) -> list[str]:
    problems = []
    for name, files in needs["files"].items():
        path = Path(needs["directory"]) / Path(name).expanduser()
        if not path.exists():
            problems.append(f"it has no {path}, which the plan names; put the same files at the same place there")
            continue
        others = [
            file for file, digest in files.items() if not (path / file).is_file() or digest_file(path / file) != digest
        ]
        if others:
            problems.append(f"{path} is not the same there (differs: {', '.join(others[:3])})")
    return problems


def digest_file(path: Path) -> str:
    """Of its size and its first 16 MiB: the weights of a large model are not read whole before every run."""
    with path.open("rb") as file:
        head = file.read(DIGEST_BYTES)
    return hashlib.sha256(b"%d\n" % path.stat().st_size + head).hexdigest()


def digest_all(path: Path) -> dict[str, str]:
    """Digest of each file in a folder by its name relative to it, hidden ones left out; of a file, by the name `.`."""
    if path.is_file():
        return {".": digest_file(path)}
    names = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
    return {
        name.as_posix(): digest_file(file)
        for name, file in names.items()
        if not any(part.startswith(".") for part in name.parts)
    }
