"""Samples that try to get out, to cheat, or to break their box; and honest ones beside them. One table, for any test.

`CANARY`, `SECRET`, `TCP` and `UDP` in a program stand for what lies outside. A program that got what it was after
raises an exception named `got ...`; whatever else it does, its tests must not pass.
"""

from __future__ import annotations

from typing import NamedTuple

TESTS = "assert solve(2) == 3"
RIGHT = "def solve(x):\n    return x + 1\n"
ANY = "*"  # a reason that depends on the system
TIME = "out of time"
ENDED = "ended before its tests did"
SHARED_KEY = 0x10CA10


class Case(NamedTuple):
    """A program, the reason of its verdict, and its tests."""

    program: str
    reason: str = ANY
    tests: str = TESTS


HONEST = {
    "right": Case(RIGHT, "passed"),
    "right, and talkative": Case(RIGHT + "print('x' * 10**6)", "passed"),
    "right, without standard output": Case("import os\nos.close(1)\n" + RIGHT, "passed"),
    "right, with a dataclass": Case(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass P:\n    x: int\ndef solve(x): return P(x).x + 1",
        "passed",
    ),
    "right, with a thread": Case(
        "from concurrent.futures import ThreadPoolExecutor as T\n"
        "def solve(x):\n    with T(2) as pool: return sum(pool.map(int, (x, 1)))",
        "passed",
    ),
    "right, and main is not run": Case(RIGHT + "if __name__ == '__main__':\n    solve = None", "passed"),
    "right, and raises what it should": Case(
        "def solve(x): raise ValueError('no')",
        "passed",
        "try:\n    solve(1)\nexcept ValueError as error:\n    assert str(error) == 'no'\nelse:\n    assert False",
    ),
    "wrong": Case("def solve(x): return x", "AssertionError"),
    "wrong type": Case("def solve(x): return [x + 1]", "AssertionError"),
    "no function": Case("", "NameError"),
    "not Python": Case("def solve(x)", "SyntaxError"),
}

_FRAMES = """
import gc, sys
def lists():
    frame = sys._getframe()
    while frame:
        yield from (value for value in frame.f_locals.values() if isinstance(value, list))
        frame = frame.f_back
for values in list(WHERE):
    for i, value in enumerate(values):
        if isinstance(value, tuple) and value[-1:] == ("tests",):
            values[i] = ("", "tests")
def solve(x): return 0
"""
_ESCAPE = "raise type('got {}', (Exception,), {{}})"
_LIBC = "import ctypes\nlibc = ctypes.CDLL(None)\n"

CHEATS = {
    "exits 0": Case("import sys\nsys.exit(0)", "SystemExit"),
    "exits 0 at once": Case("import os\nos._exit(0)", ENDED),
    "exits 0 from within": Case("def solve(x): raise SystemExit(0)", "SystemExit"),
    "exits 0 at once from within": Case("import os\ndef solve(x): os._exit(0)", ENDED),
    "exits where the tests expect an error": Case(
        "import os\ndef solve(x): os._exit(0)", ENDED, "try: solve(2)\nexcept: pass"
    ),
    "prints passed": Case("print('passed')\ndef solve(x): print('passed')", "AssertionError"),
    "writes passed everywhere": Case(
        "import os\nfor d in range(64):\n    try: os.write(d, b'[true, \"passed\"]\\n')\n    except OSError: pass\n"
    ),
    "raises what a terminal obeys": Case("raise type('x\\n\\x1b[2J', (Exception,), {})", "x??[2J"),
    "raises passed": Case("raise type('passed', (Exception,), {})", "passed"),
    "changes the reporter": Case(
        "import os, builtins\nos._exit = lambda code: None\nbuiltins.AssertionError = builtins.NameError = int\n"
        "os.write = os.read = lambda *_: b'passed'\ndef solve(x): return 0",
        "AssertionError",
    ),
    "changes exec and compile": Case(
        "import builtins\nbuiltins.exec = lambda *_: None\nbuiltins.compile = lambda *_, **__: ''\n", "NameError"
    ),
    "changes json": Case(
        "import json\njson.dumps = lambda _: '[\"value\", true]'\njson.loads = lambda _: ['call', ['list'], ['dict']]\n"
        "def solve(x): return 0"
    ),
    "a poisoned math": Case(
        "import sys, types\nmath = sys.modules['math'] = types.ModuleType('math')\n"
        "math.isclose = lambda *_, **__: True\ndef solve(x): return 0",
        "AssertionError",
        "import math\nassert math.isclose(solve(2), 3)",
    ),
    "patches the tests in a frame": Case(_FRAMES.replace("WHERE", "lists()"), "AssertionError"),
    "patches the tests by gc": Case(
        _FRAMES.replace("WHERE", "(o for o in gc.get_objects() if type(o) is list)"), "AssertionError"
    ),
    "reads the token from its pipe": Case(
        "import os\nfor d in range(3, 16):\n    try:\n        os.set_blocking(d, False)\n"
        "        token = os.read(d, 64)\n    except OSError: continue\n    for e in range(1, 16):\n"
        "        try: os.write(e, token)\n        except OSError: pass\nos._exit(0)"
    ),
    "equals everything": Case(
        "class All:\n    def __eq__(self, other): return True\ndef solve(x): return All()", "AssertionError"
    ),
    "a number that equals everything": Case(
        "class All(int):\n    def __eq__(self, other): return True\ndef solve(x): return All(7)", "AssertionError"
    ),
    "a built-in function of its own": Case(
        "def sorted(x): return [3]\ndef solve(x): return [0]", "AssertionError", "assert sorted(solve(2)) == [3]"
    ),
    "changes its arguments": Case(
        "def solve(x): x.clear(); return []", "AssertionError", "x = [2]\nassert solve(x) == x"
    ),
    "an answer too deep": Case("def solve(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y"),
    "an answer without end": Case("import itertools\ndef solve(x): return itertools.count()", TIME, "list(solve(2))"),
    "a reply without end": Case(
        "import os\nwhile True:\n    for d in range(3, 9):\n        try: os.write(d, b'[' * 4096)\n"
        "        except OSError: pass"
    ),
}

OUTBREAKS = {
    "deletes a file": Case("import os\nos.unlink(CANARY)"),
    "deletes a tree": Case("import os, shutil\nshutil.rmtree(os.path.dirname(CANARY))"),
    "overwrites a file": Case("open(CANARY, 'w').write('dead')"),
    "writes outside": Case("open(CANARY + '-more', 'w')"),
    "writes to the temporary folder": Case("open('/tmp/localora-test-escape', 'w')"),
    "writes at the root": Case("open('/localora-test-escape', 'w')", "OSError"),
    "writes to Python": Case("open(__import__('os').__file__, 'a').write(' ')"),
    "links to the outside": Case("import os\nos.symlink(CANARY, 'f')\nopen('f', 'w').write('dead')"),
    "reads the users of this machine": Case("raise type('got ' + open('/etc/passwd').read(), (Exception,), {})"),
    "reads a file": Case("raise type('got ' + open(SECRET).read(), (Exception,), {})"),
    "reads the environment": Case(
        "import os\nraise type('got ' + os.environ['LOCALORA_SECRET'], (Exception,), {})", "KeyError"
    ),
    "reads another's environment": Case(
        "import os\nfor p in (1, os.getppid()):\n"
        "    text = open(f'/proc/{p}/environ').read()\n    raise type('got ' + text, (Exception,), {})",
    ),
    "becomes root": Case("import os\nos.setuid(0)\nos.chown('/', 0, 0)\nopen('/etc/escaped', 'w')"),
    "kills its parent": Case("import os\nos.kill(os.getppid(), 9)"),
    "kills everyone": Case("import os\nos.kill(-1, 9)\nos.killpg(0, 9)"),
    "leaves a process behind": Case(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        while True: time.sleep(0.01)\n    os._exit(0)\ndef solve(x): return x",
        "PermissionError",
    ),
    "starts a program": Case("import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])", "PermissionError"),
    "TCP": Case(
        "import socket\nsocket.create_connection(('127.0.0.1', TCP), 1).send(b'hello')\n" + _ESCAPE.format("out")
    ),
    "UDP": Case(
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'hello', ('127.0.0.1', UDP))\n"
        + _ESCAPE.format("out"),
    ),
    "a socket of any family": Case(
        "import socket\nfor family in range(46):\n    for kind in (1, 2, 3):\n"
        "        try: socket.socket(family, kind)\n        except OSError: continue\n        "
        + _ESCAPE.format("a socket"),
        "NameError",
    ),
    "shared memory that stays": Case(
        _LIBC + f"if libc.shmget({SHARED_KEY}, 4096, 0o1666) >= 0:\n    " + _ESCAPE.format("memory"), "NameError"
    ),
    "a queue that stays": Case(
        _LIBC + f"if libc.msgget({SHARED_KEY}, 0o1666) >= 0:\n    " + _ESCAPE.format("a queue"), "NameError"
    ),
    "memory in files of no folder": Case(
        "import os\nfiles = []\ntry:\n    for i in range(20):\n        files.append(os.memfd_create('x'))\n"
        "        os.write(files[-1], bytes(8 * 2**20))\nexcept OSError: pass\n"
        "if files:\n    " + _ESCAPE.format("memory"),
        "NameError",
    ),
    "a user namespace": Case(
        _LIBC + "if libc.unshare(0x10000000) == 0:\n    " + _ESCAPE.format("a namespace"), "NameError"
    ),
    "a user namespace by clone": Case(
        _LIBC + "import os\nclone = 56 if os.uname().machine == 'x86_64' else 220\n"
        "if libc.syscall(clone, 0x10000000 | 17, 0, 0, 0, 0) >= 0:\n    " + _ESCAPE.format("a namespace"),
        "NameError",
    ),
    "locks a file that others use": Case(
        "import fcntl, os\nfcntl.flock(open(os.__file__), fcntl.LOCK_EX)\n" + _ESCAPE.format("a lock"),
        "PermissionError",
    ),
    "watches what others do": Case(
        _LIBC + "if libc.inotify_init1(0) >= 0:\n    " + _ESCAPE.format("a watch"), "NameError"
    ),
    "timers without end": Case(
        _LIBC + "timer = ctypes.c_void_p()\nfor _ in range(1000):\n"
        "    if libc.timer_create(0, None, ctypes.byref(timer)): break\nelse: " + _ESCAPE.format("timers"),
        "NameError",
    ),
    "another root": Case("import os\nos.chroot('/')\n" + _ESCAPE.format("a root"), "PermissionError"),
    "a mount": Case(
        _LIBC + "if libc.mount(b'none', b'/', b'tmpfs', 0, 0) == 0:\n    " + _ESCAPE.format("a mount"), "NameError"
    ),
    "lifts its limits": Case(
        "import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY,) * 2)\n" + _ESCAPE.format("memory"),
        "ValueError",
    ),
}

FLOODS = {
    "fork bomb": Case("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", TIME),
    "thread bomb": Case("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()"),
    "infinite loop": Case("while True: pass", TIME),
    "infinite sleep": Case("import time\ntime.sleep(1e6)", TIME),
    "infinite tests": Case(RIGHT, TIME, "while True: solve(2)"),
    "10 GB": Case("x = bytearray(10 * 2**30)", "MemoryError"),
    "10 GB, a little at a time": Case("x = []\nwhile True: x.append(bytearray(2**24))", "MemoryError"),
    "a crash of the interpreter": Case("import ctypes\nctypes.string_at(0)", ENDED),
    "closes everything": Case(RIGHT + "import os\nos.closerange(0, 4096)", ENDED),
}

HOSTILE = CHEATS | OUTBREAKS | FLOODS
