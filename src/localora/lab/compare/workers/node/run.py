"""One run on a node: in a process and a folder of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from localora.lab.compare.workers.node.checks import Needs, node_problems, start_folder
from localora.lab.compare.workers.node.folder import own_folder

POLL_SECONDS = 0.1

Files = dict[str, npt.NDArray[np.uint8]]  # path relative to the run's folder -> bytes, which Ray does not copy
Result = tuple[str, list[str], int, Files]  # the node's name, why it cannot do the run, the exit code, what it wrote


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
