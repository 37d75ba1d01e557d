"""The outer side: two boxes of bubblewrap a sample, one for the program and one for its tests, and their verdict."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

from localora.errors import LocaloraError
from localora.lab.evaluation.sandbox.seccomp import refusals

_INSIDE = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
_FIRST_UID, _UIDS = 61_184, 4_000  # the range systemd reserves for users that exist only while a service runs
_uids = count(secrets.randbelow(_UIDS))
_START = 120.0  # seconds for both boxes to start, however busy the machine
_REMEDY = (
    "so generated code is not run. It needs Linux with bubblewrap and libseccomp (Debian, Ubuntu: apt install "
    "bubblewrap libseccomp2) and the right to make namespaces: root's, or unprivileged user namespaces; a container "
    "must be started with it. Or leave code execution off"
)


class SandboxError(LocaloraError, RuntimeError):
    """This system cannot contain a program; nothing was run."""


@dataclass(frozen=True)
class Limits:
    """Of one program, which is one process; its tests have the same."""

    seconds: int = 10  # by the clock, from when the program starts
    memory_mib: int = 512
    threads: int = 8
    open_files: int = 32


class Sample(NamedTuple):
    """A program, and what it has to do.

    The tests are Python source and see nothing of the program but `names`: functions or classes it defines, which
    are called by plain values and return plain values. `setup` is source of our own, run where the tests are.
    """

    program: str
    tests: str
    names: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True)
class Verdict:
    """`passed` only if every test did; else `reason` is the exception's name, or how the sample ended."""

    passed: bool
    reason: str


class Sandbox:
    """Runs programs, each in a process of its own. Linux only; making one checks that it holds.

    Args:
        limits: of each sample.
        python: the interpreter samples run in, without site-packages; default the one below any virtual environment.

    Raises:
        SandboxError: this system cannot contain a program; the message says why.
    """

    def __init__(self, limits: Limits | None = None, python: str | None = None) -> None:
        self.limits = limits or Limits()
        python = python or getattr(sys, "_base_executable", None) or sys.executable
        if not sys.platform.startswith("linux"):
            raise SandboxError(f"the sandbox cannot work on {sys.platform}, {_REMEDY}")
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise SandboxError(f"bwrap is not installed, {_REMEDY}")
        try:
            self._filter = refusals()
        except OSError as error:
            raise SandboxError(f"no filter of system calls ({error}), {_REMEDY}") from None
        self._command = [bwrap, *_walls(python), "--", python, "-I", "-S", "-X", "utf8", "-c", _INSIDE]
        self._check()
        version = subprocess.run([bwrap, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        self.protections = [
            f"{version}, seccomp: one process, no network, nothing to write to, no file but Python's and the system's "
            "libraries",
            "the tests run in a second box and get plain values only",
            "limits a sample: " + ", ".join(f"{key} {value}" for key, value in asdict(self.limits).items()),
        ]

    def run(self, sample: Sample) -> Verdict:
        """Run the program, then its tests beside it.

        Raises:
            SandboxError: the boxes did not start this time; the program was not run.
        """
        return self._run(sample, self.limits)

    def _run(self, sample: Sample, limits: Limits) -> Verdict:
        to_sample, to_judge = os.pipe(), os.pipe()
        with ExitStack() as stack:
            try:
                player = self._start(stack, limits, "sample", {}, stdin=to_sample[0], stdout=to_judge[1])
                ends = {"incoming": to_judge[0], "outgoing": to_sample[1]}
                judge = self._start(stack, limits, "judge", ends, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            finally:
                for descriptor in (*to_sample, *to_judge):
                    os.close(descriptor)
            job = {**sample._asdict(), "seconds": limits.seconds}
            try:
                said, complaint = judge.communicate(json.dumps(job).encode(), limits.seconds + _START)
            except subprocess.TimeoutExpired as expired:
                said, complaint = expired.stdout or b"", b"no answer"
            player.kill()
            assert player.stderr is not None
            complaint += player.stderr.read()  # ends when all of its box has
        started, _, verdict = said.partition(b"\n")
        if started != b"started":
            reason = complaint.decode(errors="replace").strip() or "a box ended before it had started"
            raise SandboxError(f"the sandbox did not start ({reason[-500:]}), {_REMEDY}")
        return Verdict(*json.loads(verdict)) if verdict else Verdict(False, "its tests were killed")

    def run_all(self, samples: Sequence[Sample]) -> list[Verdict]:
        """The verdict on each, in order, as many at a time as there are processors for us."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(self.run, samples))

    def _start(
        self, stack: ExitStack, limits: Limits, role: str, ends: dict[str, int], *, stdin: int, stdout: int
    ) -> subprocess.Popen[bytes]:
        """One box; it is killed when `stack` is left, and with this process."""
        settings = {"limits": asdict(limits), "uid": _FIRST_UID + next(_uids) % _UIDS, **ends}
        filter_read, filter_write = os.pipe()
        try:
            os.write(filter_write, self._filter)
            os.close(filter_write)
            process = subprocess.Popen(
                [self._command[0], "--seccomp", str(filter_read), *self._command[1:], role, json.dumps(settings)],
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                env={},
                pass_fds=(filter_read, *ends.values()),
            )
        finally:
            os.close(filter_read)
        stack.enter_context(process)
        stack.callback(process.kill)
        return process

    def _check(self) -> None:
        """Run an honest program, which also tries every door.

        Raises:
            SandboxError: it failed, or one was open.
        """
        tests = "doors = open_doors()\nif doors: raise type(', '.join(doors), (Exception,), {})"
        patient = replace(self.limits, seconds=int(_START))
        verdict = self._run(Sample(_PROBE, tests, ("open_doors",)), patient)
        if not verdict.passed:
            raise SandboxError(f"the sandbox does not hold ({verdict.reason}), {_REMEDY}")


def _walls(python: str) -> list[str]:
    """Options of bwrap: new namespaces, no rights, and a read-only root of Python and the libraries it needs."""
    query = "import os, sys; print(os.path.dirname(os.__file__), os.path.join(sys.base_prefix, 'lib'), sep='\\n')"
    try:
        library = subprocess.run([python, "-I", "-S", "-c", query], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SandboxError(f"{python} does not run ({error}), {_REMEDY}") from None
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    shown = {path for path in (*library.split("\n"), python, os.path.realpath(python), *system) if os.path.exists(path)}
    if os.geteuid() == 0:  # becomes a user that nobody else is, once inside
        rights = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        rights = ["--unshare-user"]
    walls = [*rights, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    walls += ["--die-with-parent", "--new-session"]
    for parent in sorted({str(parent) for path in (*shown, "/dev/null") for parent in Path(path).parents} - shown):
        walls += ["--dir", parent]  # else it would be as private as it is outside
    for path in sorted(shown):
        walls += ["--ro-bind", path, path]
    walls += ["--dev-bind", "/dev/null", "/dev/null"]
    return [*walls, "--remount-ro", "/", "--chdir", "/"]


_PROBE = """
import ctypes, json, decimal, os, random, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
DOORS = {
    "file": lambda: open("/canary", "w"),
    "temporary file": lambda: open("/tmp/canary", "w"),
    "process": os.fork,
    "socket": socket.socket,
    "memfd": lambda: os.memfd_create("canary"),
    "shared memory": lambda: call("shmget", 0, 4096, 0o1600),
    "user namespace": lambda: call("unshare", 0x10000000),
    "chroot": lambda: os.chroot("/"),
    "root": lambda: os.setuid(0),
    "proc": lambda: os.listdir("/proc"),
    "home": lambda: os.listdir("/home"),
}
def is_open(act):
    try:
        act()
    except OSError:
        return False
    return True
def open_doors():
    return [name for name, act in DOORS.items() if is_open(act)]
"""
