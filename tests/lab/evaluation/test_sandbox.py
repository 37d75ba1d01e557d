"""Hostile samples in each kind of box: none scores, none harms; and honest ones get the right verdict."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from hostile_samples import HONEST, HOSTILE, SHARED_KEY, TESTS, TIME
from localora.lab.evaluation.sandbox import Limits, Sample, Sandbox, SandboxError, Verdict, box, seccomp
from patience import wait_until

pytestmark = pytest.mark.usefixtures("bubblewrap")
NOBODY = 65_534
# An interpreter that every user can read: a test run's own may lie in root's home.
EVERYONES_PYTHON = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(path).exists()), None)
HASTY = Limits(seconds=2)  # for what never ends
PATIENT = Limits(seconds=300)  # for what ends of itself, however slow the machine


@dataclass
class Outside:
    """What samples go for."""

    folder: Path
    tcp: int
    udp: int

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    def fill(self, program: str) -> str:
        values = {"CANARY": str(self.canary), "SECRET)": str(self.folder / "secret"), "TCP": self.tcp, "UDP": self.udp}
        for name, value in values.items():
            program = program.replace(name, repr(value) + ")" * name.count(")"))
        return program

    def unharmed(self) -> bool:
        return (
            sorted(os.listdir(self.folder)) == ["canary", "secret"]
            and self.canary.read_text() == "alive"
            and not Path("/tmp/localora-test-escape").exists()
            and not Path("/localora-test-escape").exists()
            and not any(str(SHARED_KEY) in Path(f"/proc/sysvipc/{kind}").read_text() for kind in ("shm", "msg"))
        )


def boxes(option: str = "--remount-ro") -> list[psutil.Process]:
    """The boxes that run, told by their command, without those of other test runs."""
    running = psutil.process_iter(["cmdline", "cpu_times"])  # read at once: a process may end at any later word
    return [p for p in running if option in (p.info["cmdline"] or ()) and not elsewhere(p)]


def elsewhere(process: psutil.Process) -> bool:
    try:
        above = {parent.pid: " ".join(parent.cmdline()) for parent in process.parents()}
    except psutil.NoSuchProcess:
        return True
    return os.getpid() not in above and any("pytest" in command for command in above.values())


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
    unharmed: dict[str, bool]
    reached: bool  # something came in by the network


@pytest.fixture(scope="module", params=["as this user", "as another user than root"])
def battery(request: pytest.FixtureRequest) -> Iterator[Battery]:
    """All samples, one after the other, each followed by a look at what it was after."""
    uid, python = os.geteuid(), None
    if request.param != "as this user":
        if uid != 0 or EVERYONES_PYTHON is None:
            pytest.skip("needs root, and a Python that every user can read")
        uid, python = NOBODY, EVERYONES_PYTHON
        trial = as_user(
            uid, lambda: subprocess.run(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"]).returncode
        )
        if trial != 0:
            pytest.skip("other users than root may not make namespaces here")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    server = socket.create_server(("127.0.0.1", 0))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    for listener in (server, datagrams):
        listener.settimeout(0.1)
    outside = Outside(folder, server.getsockname()[1], datagrams.getsockname()[1])
    outside.canary.write_text("alive")
    outside.canary.chmod(0o666)
    (folder / "secret").write_text("SECRET WORDS")
    (folder / "secret").chmod(0o644)
    os.environ["LOCALORA_SECRET"] = "SECRET WORDS"

    def run() -> Any:
        patient, hasty = Sandbox(PATIENT, python), Sandbox(HASTY, python)
        verdicts, unharmed = {}, {}
        for name, case in (HONEST | HOSTILE).items():
            chosen = hasty if case.reason == TIME else patient
            verdicts[name] = chosen.run(Sample(outside.fill(case.program), case.tests, ("solve",)))
            unharmed[name] = outside.unharmed()
        return verdicts, unharmed

    try:
        verdicts, unharmed = as_user(uid, run)
        reached = False
        for listen in (server.accept, lambda: datagrams.recv(1)):
            try:
                listen()
                reached = True
            except TimeoutError:
                pass
        yield Battery(verdicts, unharmed, reached)
    finally:
        del os.environ["LOCALORA_SECRET"]
        server.close()
        datagrams.close()
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_honest(battery, name):
    expected = HONEST[name].reason
    assert battery.verdicts[name] == Verdict(expected == "passed", expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(battery, name):
    verdict, expected = battery.verdicts[name], HOSTILE[name].reason
    assert not verdict.passed
    assert "SECRET" not in verdict.reason
    assert "got" not in verdict.reason
    if expected != "*":
        assert verdict.reason == expected
    assert battery.unharmed[name]


@pytest.mark.slow
def test_nothing_is_left(battery):
    wait_until(lambda: not boxes(), "the end of the boxes")
    assert not battery.reached


@pytest.mark.slow
def test_boxes_end_with_the_process_that_started_them():
    child = os.fork()
    if child == 0:
        Sandbox(PATIENT).run(Sample("while True: pass", TESTS, ("solve",)))
        os._exit(0)

    def endless() -> bool:
        return any("sample" in p.info["cmdline"] and p.info["cpu_times"].user > 0.5 for p in boxes("-S"))

    wait_until(endless, "a box that runs")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: not boxes() and not endless(), "the end of all boxes")


@pytest.mark.parametrize(
    ("value", "expression"),
    [
        ("[1, 2.5, None, True, 'a\\n\\ud800', b'\\0']", None),
        ("{(1, 2): {3}, 'x': [frozenset({4})]}", None),
        ("10**5000", None),
        ("float('inf')", None),
        ("1 + 2j", None),
        ("__import__('fractions').Fraction(1, 3)", None),
        ("__import__('decimal').Decimal('0.10')", "__import__('decimal').Decimal('0.1')"),
        ("__import__('collections').Counter('aab')", "{'a': 2, 'b': 1}"),
        ("__import__('collections').namedtuple('P', 'x y')(1, 2)", "(1, 2)"),
        ("int", None),
    ],
)
def test_values_arrive_as_they_were(value, expression):
    """From the program to its tests, and back."""
    program = f"def give(): return {value}\ndef same(x): return x == {value} and type(x) is type({expression or value})"
    tests = f"x = give()\nassert x == {expression or value} and type(x) is type({expression or value})\nassert same(x)"
    assert Sandbox(PATIENT).run(Sample(program, tests, ("give", "same"))) == Verdict(True, "passed")


def test_objects_stay_with_the_program_and_can_be_used():
    program = """
class Node:
    def __init__(self, value): self.value, self.left = value, None
    def __len__(self): return 1 if self.left is None else 1 + len(self.left)
def depth(node): return len(node)
def squares(n): return (i * i for i in range(n))
"""
    tests = """
root = Node(1)
root.left = Node(value=2)
root.left.left = Node(3)
assert depth(root) == 3 and len(root.left) == 2 and root.left.value == 2
assert list(squares(4)) == [0, 1, 4, 9]
assert Node(1) != Node(1)
"""
    assert Sandbox(PATIENT).run(Sample(program, tests, ("Node", "depth", "squares"))) == Verdict(True, "passed")


def test_a_value_of_the_program_is_a_value_in_its_tests():
    sample = Sample("limit = 3\ndef solve(): return limit", "assert limit == 3 == solve()", ("limit", "solve"))
    assert Sandbox(PATIENT).run(sample) == Verdict(True, "passed")


def test_a_function_of_the_tests_cannot_be_handed_over():
    assert (
        Sandbox().run(Sample("def solve(f): return f(2)", "assert solve(abs) == 2", ("solve",))).reason == "TypeError"
    )


def test_setup_belongs_to_the_tests():
    """Its helpers are the tests' own, whatever the program calls by the same name."""
    setup = "import math\ndef helper(x):\n    return math.floor(x)"
    program = "def helper(x): return 3\ndef solve(x): return 0.5"
    assert (
        Sandbox(PATIENT).run(Sample(program, "assert helper(solve(2)) == 3", ("solve",), setup)).reason
        == "AssertionError"
    )


def test_limits_bind():
    """Counted from inside: threads, memory, open files."""
    program = """
import mmap, os, threading
def files():
    n = []
    while True:
        try: n.append(os.open("/dev/null", os.O_RDONLY))
        except OSError: return n[-1]
def threads():
    stop, n = threading.Event(), 0
    try:
        while True:
            threading.Thread(target=stop.wait, daemon=True).start()
            n += 1
    except RuntimeError:
        return n
def memory():
    n = []
    while True:
        try: n.append(mmap.mmap(-1, 16 * 2**20))
        except OSError: return len(n) * 16
"""
    # The first process of the box may count as a thread.
    tests = "assert 64 <= memory() < 256\nassert 3 <= threads() <= 4\nassert files() == 11"
    limits = Limits(seconds=300, threads=5, open_files=12, memory_mib=256)
    assert Sandbox(limits).run(Sample(program, tests, ("files", "threads", "memory"))) == Verdict(True, "passed")


def test_many_at_once_keep_their_order():
    samples = [Sample(f"def solve(x): return x + {i % 2}", TESTS, ("solve",)) for i in range(12)]
    verdicts = Sandbox(PATIENT).run_all(samples)
    assert [verdict.passed for verdict in verdicts] == [bool(i % 2) for i in range(12)]


def test_without_bubblewrap_nothing_runs(monkeypatch):
    monkeypatch.setattr(box.shutil, "which", lambda _: None)
    with pytest.raises(SandboxError, match=r"bwrap is not installed.*apt install bubblewrap.*leave code execution off"):
        Sandbox()


def test_without_libseccomp_nothing_runs(monkeypatch):
    monkeypatch.setattr(seccomp.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(f"{name}: not found")))
    with pytest.raises(SandboxError, match=r"libseccomp\.so\.2: not found.*apt install bubblewrap libseccomp2"):
        Sandbox()


def test_a_python_that_does_not_run_is_named():
    with pytest.raises(SandboxError, match=r"/no/python does not run"):
        Sandbox(python="/no/python")


def test_where_namespaces_are_forbidden_nothing_runs(monkeypatch, tmp_path):
    """What bubblewrap says is passed on."""
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setattr(box.shutil, "which", lambda _: str(bwrap))
    with pytest.raises(SandboxError, match=r"did not start \(bwrap: No permissions to create new namespace"):
        Sandbox()


@pytest.mark.parametrize(
    ("call", "door"), [("socket", "socket"), ("memfd_create", "memfd"), ("shmget", "shared memory")]
)
def test_an_open_door_is_a_refusal(monkeypatch, call, door):
    """Were a protection to fail silently, the check at the start would see it."""
    monkeypatch.setattr(seccomp, "REFUSED", [name for name in seccomp.REFUSED if name != call])
    with pytest.raises(SandboxError, match=rf"does not hold \({door}\)"):
        Sandbox()


def test_an_unknown_system_call_is_an_error(monkeypatch):
    """A filter that left one out would look like one that refuses it."""
    monkeypatch.setattr(seccomp, "REFUSED", ["no_such_call"])
    with pytest.raises(SandboxError, match=r"too old to know the system call no_such_call"):
        Sandbox()
