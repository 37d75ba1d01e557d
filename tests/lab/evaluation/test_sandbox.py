"""Hostile samples in each kind of box: none scores, none harms; and honest ones get the right verdict."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from localora.lab.evaluation.sandbox import Limits, Sandbox, SandboxError, Verdict
from localora.lab.evaluation.sandbox.box import Means

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="needs Linux, and root to try every kind of box"
)
NOBODY = 65_534
# An interpreter that every user can read: a test run's own may lie in root's home.
EVERYONES_PYTHON = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(path).exists()), None)
BOXES = {
    "namespaces of root": Means(namespaces=True, user_namespace=False, own_uid=True),
    "namespaces of a user": Means(namespaces=True, user_namespace=True, own_uid=False),
    "user id and Landlock": Means(namespaces=False, user_namespace=False, own_uid=True),
}
LIMITS = Limits(seconds=3, processes=6)

TESTS = "assert solve(2) == 3"
RIGHT = "def solve(x):\n    return x + 1\n"
HONEST: dict[str, tuple[str, str]] = {  # program, the reason of its verdict
    "right": (RIGHT, "passed"),
    "right, and talkative": (RIGHT + "print('x' * 10**6)", "passed"),
    "right, without standard output": ("import os\nos.close(1)\n" + RIGHT, "passed"),
    "right, with files and a dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass P:\n    x: int\nopen('f', 'w').write('1')\n"
        "def solve(x): return P(x).x + int(open('f').read())",
        "passed",
    ),
    "right, and main is not run": (RIGHT + "if __name__ == '__main__':\n    solve = None", "passed"),
    "wrong": ("def solve(x): return x", "AssertionError"),
    "no function": ("", "NameError"),
    "not Python": ("def solve(x)", "SyntaxError"),
}
# Every one fails its tests or never comes to them; CANARY, SECRET, PORT are filled in.
HOSTILE: dict[str, tuple[str, str]] = {
    "fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "out of time"),
    "thread bomb": ("import threading\nwhile True: threading.Thread(target=lambda: input()).start()", "*"),
    "infinite loop": ("while True: pass", "*"),
    "infinite sleep": ("import time\ntime.sleep(1e6)", "out of time"),
    "10 GB": ("x = bytearray(10 * 2**30)", "MemoryError"),
    "10 GB, a little at a time": ("x = []\nwhile True: x.append(bytearray(2**24))", "MemoryError"),
    "a crash of the interpreter": ("import ctypes\nctypes.string_at(0)", "*"),
    "deletes a file": ("import os\nos.unlink(CANARY)", "*"),
    "deletes a tree": ("import os, shutil\nshutil.rmtree(os.path.dirname(CANARY))", "*"),
    "overwrites a file": ("open(CANARY, 'w').write('dead')", "*"),
    "writes outside": ("open(CANARY + '-more', 'w')", "*"),
    "writes to the temporary folder": ("open('/tmp/localora-test-escape', 'w')", "*"),
    "renames into the open": ("import os\nopen('f', 'w')\nos.rename('f', CANARY)", "*"),
    "links to the outside": ("import os\nos.symlink(CANARY, 'f')\nopen('f', 'w').write('dead')", "*"),
    "reads the users of this machine": ("raise type('got ' + open('/etc/passwd').read(), (Exception,), {})", "*"),
    "reads a file": ("raise type(open(SECRET).read(), (Exception,), {})", "*"),
    "reads the environment": ("import os\nraise type(os.environ['LOCALORA_SECRET'], (Exception,), {})", "KeyError"),
    "reads another's environment": (
        "import os\nfor p in (1, os.getppid()):\n"
        "    text = open(f'/proc/{p}/environ').read()\n    raise type('got ' + text, (Exception,), {})",
        "*",
    ),
    "exits 0": ("import sys\nsys.exit(0)", "SystemExit"),
    "exits 0 at once": ("import os\nos._exit(0)", "*"),
    "exits 0 from within": ("def solve(x): raise SystemExit(0)", "SystemExit"),
    "exits 0 at once from within": ("import os\ndef solve(x): os._exit(0)", "*"),
    "prints passed": ("print('passed')\ndef solve(x): print('passed')", "AssertionError"),
    "writes passed everywhere": (
        "import os\nfor d in range(64):\n    try: os.write(d, b'passed')\n    except OSError: pass\n", "*",
    ),
    "changes the reporter": (
        "import os, builtins\nos._exit = lambda code: None\nbuiltins.AssertionError = builtins.NameError = int\n"
        "os.write = os.read = lambda *_: b'passed'\ndef solve(x): return 0",
        "AssertionError",
    ),
    "changes exec and compile": (
        "import builtins\nbuiltins.exec = lambda *_: None\nbuiltins.compile = lambda *_, **__: ''\n", "NameError",
    ),
    "kills its parent": ("import os\nos.kill(os.getppid(), 9)\nwhile True: pass", "*"),
    "kills everyone": ("import os\nos.kill(-1, 9)\nos.killpg(0, 9)", "*"),
    "leaves a process behind": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        while True: time.sleep(0.01)\n    os._exit(0)\ndef solve(x): return x",
        "AssertionError",
    ),
    "closes everything": (RIGHT + "import os\nos.closerange(0, 4096)", "*"),
    "a huge file": ("f = open('f', 'wb')\nwhile True: f.write(bytes(2**20)); f.flush()", "OSError"),
    "many files": (
        "import itertools\nfor i in itertools.count():\n    open(str(i), 'wb').write(bytes(2**20))", "*",
    ),
    "the network": (
        "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1).send(b'hello')\n"
        "raise type('connected', (Exception,), {})",
        "*",
    ),
    "becomes root": ("import os\nos.setuid(0)\nos.chown('/', 0, 0)\nopen('/etc/escaped', 'w')", "*"),
    "lifts its limits": ("import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY,) * 2)", "*"),
}  # fmt: skip


@dataclass
class Outside:
    """What samples go for."""

    folder: Path
    port: int

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    def fill(self, program: str) -> str:
        values = {"CANARY": str(self.canary), "SECRET": str(self.folder / "secret"), "PORT": self.port}
        for name, value in values.items():
            program = (
                program.replace(name, repr(value)) if name != "SECRET" else program.replace("(SECRET", f"({value!r}")
            )
        return program

    def unharmed(self) -> bool:
        return sorted(os.listdir(self.folder)) == ["canary", "secret"] and self.canary.read_text() == "alive"


def samples() -> list[psutil.Process]:
    """Supervisors and all that they started, told by the folder they run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(part.endswith("sandbox/inside") for part in process.info["cmdline"] or ()):
            found.append(process)
    return found


def as_user(uid: int, work: Callable[[], Any]) -> Any:
    """The result of `work` in a child process of that user."""
    if uid == os.geteuid():
        return work()
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        try:
            result = work()
        except BaseException as error:
            result = error
        with open(start, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(start)
    with open(end, "rb") as pipe:
        result = pickle.load(pipe)
    os.waitpid(child, 0)
    if isinstance(result, BaseException):
        raise result
    return result


@dataclass
class Battery:
    verdicts: dict[str, Verdict]
    outside: Outside
    unharmed: dict[str, bool]
    protections: list[str]
    reached: bool  # a connection came in


@pytest.fixture(scope="module", params=BOXES)
def battery(request: pytest.FixtureRequest) -> Iterator[Battery]:
    """All samples, one after the other, each followed by a look at what it was after."""
    means = BOXES[request.param]
    python = None if means.namespaces and means.own_uid else EVERYONES_PYTHON
    if python is None and not means.own_uid:
        pytest.skip("no Python that every user can read")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    outside = Outside(folder, server.getsockname()[1])
    outside.canary.write_text("alive")
    outside.canary.chmod(0o666)
    (folder / "secret").write_text("SECRET WORDS")
    (folder / "secret").chmod(0o644)
    os.environ["LOCALORA_SECRET"] = "SECRET WORDS"

    def run() -> Any:
        box = Sandbox(LIMITS, python, [means])
        verdicts, unharmed = {}, {}
        for name, (program, _) in (HONEST | HOSTILE).items():
            verdicts[name] = box.run(outside.fill(program), TESTS)
            unharmed[name] = outside.unharmed() and not Path("/tmp/localora-test-escape").exists()
        return verdicts, unharmed, box.protections

    try:
        try:
            verdicts, unharmed, protections = as_user(os.geteuid() if means.own_uid else NOBODY, run)
        except SandboxError as error:
            if "not permitted" not in str(error):  # anything else is our fault
                raise
            pytest.skip(f"this system has no such box: {error}")
        try:
            server.accept()
            reached = True
        except TimeoutError:
            reached = False
        yield Battery(verdicts, outside, unharmed, protections, reached)
    finally:
        del os.environ["LOCALORA_SECRET"]
        server.close()
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", HONEST)
def test_honest(battery, name):
    expected = HONEST[name][1]
    assert battery.verdicts[name] == Verdict(expected == "passed", expected)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(battery, name):
    verdict, expected = battery.verdicts[name], HOSTILE[name][1]
    assert not verdict.passed
    assert "SECRET" not in verdict.reason
    assert "got" not in verdict.reason
    if expected != "*":
        assert verdict.reason == expected
    assert battery.unharmed[name]


def test_nothing_is_left(battery):
    assert samples() == []
    assert not list(Path(tempfile.gettempdir()).glob("localora-sandbox-*"))
    assert not battery.reached


def test_the_box_says_what_it_is(battery):
    said = "\n".join(battery.protections)
    assert "network: no" in said
    assert "processes: " in said
    assert "memory_mib 512" in said


def test_limits_bind():
    """Counted from inside: processes, disk, memory, open files."""
    limits = Limits(seconds=5, processes=5, disk_mib=4, file_mib=2, open_files=12, memory_mib=256)
    program = """
import mmap, os
def processes():
    n = 1
    while True:
        try:
            if os.fork() == 0:
                while True: pass
        except OSError: return n
        n += 1
def disk():
    n = 0
    while True:
        try:
            with open(str(n), "wb") as f: f.write(bytes(2**20))
        except OSError: return n
        n += 1
def one_file():
    with open("one", "wb", 0) as f: return f.write(bytes(3 * 2**20)) >> 20
def files():
    n = []
    while True:
        try: n.append(os.open("/dev/null", os.O_RDONLY))
        except OSError: return n[-1]
def memory():
    n = []
    while True:
        try: n.append(mmap.mmap(-1, 16 * 2**20))
        except OSError: return len(n) * 16
def solve(): return processes(), one_file(), disk(), files(), memory()
"""
    box = Sandbox(limits)
    verdict = box.run(
        program, "p, o, d, f, m = solve()\nassert (p, o, d, f) == (5, 2, 2, 11), (p, o, d, f)\nassert 64 <= m < 256"
    )
    assert verdict == Verdict(True, "passed")


def test_many_at_once_keep_their_order():
    seen = []
    pairs = [(f"def solve(x): return x + {i % 2}", TESTS) for i in range(12)]
    verdicts = Sandbox().run_all(pairs, lambda *now: seen.append(now))
    assert [verdict.passed for verdict in verdicts] == [bool(i % 2) for i in range(12)]
    assert seen[-1] == (12, 12)


def test_without_means_nothing_runs():
    """Here a user without the right to change user ids."""
    broken = Means(namespaces=False, user_namespace=False, own_uid=True)
    with pytest.raises(
        SandboxError, match=r"(?s)own user id and Landlock.*no right to run as another user.*leave code execution off"
    ):
        as_user(NOBODY, lambda: Sandbox(python=EVERYONES_PYTHON, means=[broken]))


def test_a_canary_that_dies_is_a_refusal(monkeypatch, tmp_path):
    """Were a protection to fail silently, the check at the start would see it."""
    box = Sandbox()
    monkeypatch.setattr("localora.lab.evaluation.sandbox.box.tempfile.mkdtemp", lambda prefix: str(tmp_path))
    ends = iter([lambda: None, (tmp_path / "canary").unlink])  # the honest program, then the one that reaches out

    def run(*_: str) -> tuple[Verdict, int]:
        next(ends)()
        return Verdict(True, "passed"), 0

    monkeypatch.setattr(box, "_run", run)
    with pytest.raises(SandboxError, match="could write outside"):
        box._check()
