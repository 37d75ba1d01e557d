"""The outer side of the sandbox: choose the means this system has, start a supervisor a sample, judge by its token."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from localora.errors import LocaloraError

_INSIDE = Path(__file__).parent / "inside"
_FIRST_UID, _UIDS = 61_184, 4_000  # the range systemd reserves for users that exist only while a service runs
_uids = count(secrets.randbelow(_UIDS))
_NO_VERDICT = {0: "ended before its tests did", 3: "out of time", 4: "out of disk space", 5: "killed"}
_GRACE = 20.0  # seconds beyond a sample's own for the supervisor to start, and to clear away


class SandboxError(LocaloraError, RuntimeError):
    """This system cannot contain a program; nothing was run."""


@dataclass(frozen=True)
class Limits:
    """Of one sample. Memory and file size count for each process; the disk for all files together."""

    seconds: int = 10  # by the clock, and of processor time
    memory_mib: int = 512
    processes: int = 8  # threads count too
    file_mib: int = 8
    disk_mib: int = 32
    open_files: int = 32


@dataclass(frozen=True)
class Verdict:
    """`passed` only if every test did; else `reason` is the exception's name, or how the sample ended."""

    passed: bool
    reason: str


@dataclass(frozen=True)
class Means:
    """What contains a sample: namespaces (in a user namespace unless root), or a user id of its own and Landlock."""

    namespaces: bool
    user_namespace: bool
    own_uid: bool


class Sandbox:
    """Runs programs one process each. Linux only; making one checks that it holds.

    Args:
        limits: of each sample.
        python: the interpreter samples run in, without site-packages; default the one below any virtual environment.
        means: to try, in this order; default all that the user's rights allow.

    Raises:
        SandboxError: no means holds on this system; the message says why each failed.
    """

    def __init__(
        self, limits: Limits | None = None, python: str | None = None, means: Sequence[Means] | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.python = python or getattr(sys, "_base_executable", None) or sys.executable
        if not sys.platform.startswith("linux"):
            raise SandboxError(f"generated code runs on Linux only (here: {sys.platform}); use a container")
        failures = []
        for candidate in means or _allowed_means():
            self.means = candidate
            try:
                self.protections = self._check()
            except SandboxError as error:
                failures.append(f"{_name(candidate)}: {error}")
            else:
                return
        raise SandboxError(
            "generated code cannot be contained here, so it is not run. Tried:\n  "
            + "\n  ".join(failures)
            + "\nRun as root, allow user namespaces, or use a container or virtual machine with Landlock; "
            "or leave code execution off"
        )

    def run(self, program: str, tests: str) -> Verdict:
        """Run `program`, then `tests` in its namespace.

        Raises:
            SandboxError: the protections could not be put in place this time; the program was not run.
        """
        verdict, _ = self._run(program, tests)
        return verdict

    def run_all(
        self, samples: Sequence[tuple[str, str]], progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """The verdict on each (program, tests), as many at a time as there are processors for us."""
        verdicts = []
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for verdict in pool.map(lambda sample: self.run(*sample), samples):
                verdicts.append(verdict)
                if progress is not None:
                    progress(len(verdicts), len(samples))
        return verdicts

    def _run(self, program: str, tests: str) -> tuple[Verdict, int]:
        """The verdict, and the kernel's Landlock ABI."""
        token = secrets.token_hex(16).encode()
        uid = _FIRST_UID + next(_uids) % _UIDS if self.means.own_uid else None
        folder = tempfile.mkdtemp(prefix="localora-sandbox-")
        status_read, status_write = os.pipe()
        token_read, token_write = os.pipe()
        try:
            os.write(token_write, token)
            if uid is not None:
                _give(folder, uid)
            job = {
                **asdict(self.limits),
                "program": program,
                "tests": tests,
                "folder": folder,
                "status": status_write,
                "token": token_read,
                "uid": uid,
                "namespaces": self.means.namespaces,
                "user_namespace": self.means.user_namespace,
            }
            process = subprocess.Popen(
                [self.python, "-I", "-S", "-X", "utf8", str(_INSIDE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                pass_fds=(status_write, token_read),
                start_new_session=True,
            )
            os.close(status_write)
            status_write = -1
            said = self._await(process, json.dumps(job).encode())
            state = _state(os.read(status_read, 4096))
        finally:
            for descriptor in (status_read, status_write, token_read, token_write):
                if descriptor >= 0:
                    os.close(descriptor)
            shutil.rmtree(folder, ignore_errors=True)
        if secrets.compare_digest(said, token):
            return Verdict(True, "passed"), state
        if said.startswith(b"error: "):
            return Verdict(False, said[7:200].decode(errors="replace")), state
        return Verdict(False, _NO_VERDICT.get(process.returncode, "killed")), state

    def _await(self, process: subprocess.Popen[bytes], job: bytes) -> bytes:
        """What the sample's verdict pipe holds once all is over. A sample can fill it, and then has no verdict."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as stdin:
                stdin.write(job)
        except BrokenPipeError:
            pass  # the status pipe says why
        try:
            process.wait(self.limits.seconds + _GRACE)
        except BaseException:
            process.kill()
            process.wait()
            raise
        with process.stdout as stdout:
            return os.read(stdout.fileno(), 4096)

    def _check(self) -> list[str]:
        """Run an honest program and one that reaches outside; what protects, in words."""
        folder = Path(tempfile.mkdtemp(prefix="localora-canary-"))
        canary = folder / "canary"
        try:
            folder.chmod(0o777)
            canary.write_text("alive", encoding="utf-8")
            canary.chmod(0o666)
            verdict, landlock = self._run("import json, decimal, random", "assert json.dumps(1) == '1'")
            if not verdict.passed:
                raise SandboxError(
                    f"an honest program failed ({verdict.reason}); is {self.python} readable by every user?"
                )
            self._run(_REACH_OUT.format(canary=str(canary)), "")
            if not canary.is_file() or canary.read_text(encoding="utf-8") != "alive" or len(list(folder.iterdir())) > 1:
                raise SandboxError("a program could write outside its folder")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return _in_words(self.means, landlock, self.limits)


_REACH_OUT = """
import os, shutil
for act in (
    lambda: open({canary!r}, "w").write("dead"),
    lambda: open({canary!r} + "2", "w").close(),
    lambda: os.truncate({canary!r}, 0),
    lambda: os.unlink({canary!r}),
    lambda: shutil.rmtree(os.path.dirname({canary!r})),
):
    try:
        act()
    except OSError:
        pass
"""


def _give(folder: str, uid: int) -> None:
    try:
        os.chown(folder, uid, uid)
    except PermissionError as error:
        raise SandboxError(f"no right to run as another user: {error.strerror}") from None


def _allowed_means() -> list[Means]:
    root = os.geteuid() == 0
    spaces = Means(namespaces=True, user_namespace=not root, own_uid=root)
    return [spaces, Means(namespaces=False, user_namespace=False, own_uid=True)] if root else [spaces]


def _name(means: Means) -> str:
    if not means.namespaces:
        return "own user id and Landlock"
    return "namespaces in a user namespace" if means.user_namespace else "namespaces"


def _state(said: bytes) -> int:
    """The Landlock ABI of a worker that was ready to run its sample."""
    try:
        state = json.loads(said)
    except ValueError:
        raise SandboxError("the supervisor ended before it had put its protections in place") from None
    if not state["ready"]:
        raise SandboxError(state["error"])
    return int(state["landlock"])


def _in_words(means: Means, landlock: int, limits: Limits) -> list[str]:
    if means.namespaces:
        words = [
            "processes: namespace of their own, killed with its first process",
            "files: a root of Python's library alone, read-only",
            "network: none (namespace of its own)",
        ]
    else:
        words = [
            "processes: killed by their user id",
            "network: no TCP (Landlock)" if landlock >= 4 else "network: OPEN (no namespace, Landlock before ABI 4)",
        ]
    if means.own_uid:
        words.append("user: an unprivileged one of its own")
    if landlock:
        words.append(f"files: Landlock ABI {landlock}, read Python's library, write one folder")
    return [*words, "limits a sample: " + ", ".join(f"{key} {value}" for key, value in asdict(limits).items())]
