"""What runs in the two boxes of a sample: `python -c THIS sample ...` and `python -c THIS judge ...`.

    sample      runs the program, then does what it is asked: call this function with these values, ...
    judge       runs the tests; what they call of the program is asked of the sample, and only values come back

Each request and each reply is a line of JSON. The judge builds nothing from a reply but the plain types listed in
`encode`, so the sample has no way to the judge's objects, modules or frames. Standard library only.
"""

from __future__ import annotations

import builtins
import json
import operator
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, BinaryIO, NoReturn

SEQUENCES: dict[str, Any] = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
NUMBERS: dict[str, Any] = {kind.__name__: kind for kind in (complex, Decimal, Fraction)}
TYPES: dict[str, type] = {
    kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)
}
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    **{function.__name__: function for function in (getattr, setattr, iter, next, len, bool, operator.getitem)},
}


def encode(value: Any, refer: Callable[[Any], list[Any]]) -> Any:
    """As JSON. A subclass counts as the plain type below it; `refer` stands in for what is none of them."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for name, kind in SEQUENCES.items():
        if isinstance(value, kind):
            return [name, *(encode(item, refer) for item in value)]
    if isinstance(value, dict):
        return ["dict", *([encode(key, refer), encode(item, refer)] for key, item in value.items())]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    for name, kind in NUMBERS.items():
        if isinstance(value, kind):
            return [name, str(value)]
    if isinstance(value, type) and TYPES.get(value.__name__) is value:
        return ["type", value.__name__]
    return refer(value)


def decode(data: Any, resolve: Callable[[Any], Any]) -> Any:
    """What `encode` made; `resolve(key)` is what the reference ["kept", key] stands for."""
    if not isinstance(data, list):
        return data
    kind, *rest = data
    if kind in SEQUENCES:
        return SEQUENCES[kind](decode(item, resolve) for item in rest)
    if kind == "dict":
        return {decode(key, resolve): decode(item, resolve) for key, item in rest}
    if kind == "bytes":
        return bytes.fromhex(rest[0])
    if kind in NUMBERS:
        return NUMBERS[kind](rest[0])
    if kind == "type":
        return TYPES[rest[0]]
    if kind == "kept":
        return resolve(rest[0])
    raise ValueError(f"nothing is sent as {kind!r}")


class Ended(BaseException):
    """The sample's process is gone."""


class Line:
    """One end of the pipes between the two boxes."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming: BinaryIO = os.fdopen(incoming, "rb")
        self.outgoing: BinaryIO = os.fdopen(outgoing, "wb")
        self.broken = False

    def send(self, message: Any) -> None:
        try:
            self.outgoing.write(json.dumps(message).encode() + b"\n")
            self.outgoing.flush()
        except BrokenPipeError:
            self.broken = True
            raise Ended from None

    def receive(self) -> Any:
        line = self.incoming.readline()
        if not line:
            self.broken = True
            raise Ended
        return json.loads(line)


def sample(line: Line) -> None:
    """Serve requests `[operation, arguments, keywords]` until the judge hangs up."""
    module = types.ModuleType("program")
    sys.modules["program"] = sys.modules["__main__"] = module  # dataclasses look their module up
    kept: list[Any] = []

    def run(program: str) -> None:
        exec(compile(program, "<program>", "exec", dont_inherit=True), vars(module))

    def get(name: str) -> Any:
        if name not in vars(module):
            raise NameError(f"name {name!r} is not defined")
        return vars(module)[name]

    def refer(value: Any) -> list[Any]:
        kept.append(value)
        return ["kept", len(kept) - 1]

    operations = {**OPERATIONS, "run": run, "get": get}
    line.send("ready")
    while True:
        try:
            operation, arguments, keywords = line.receive()
        except Ended:
            return
        try:
            arguments, keywords = (decode(data, kept.__getitem__) for data in (arguments, keywords))
            result = operations[operation](*arguments, **keywords)
            reply = ["value", encode(result, refer)]
        except BaseException as error:  # SystemExit too: leaving is no answer
            reply = ["error", type(error).__name__, str(error)[:1000]]
        line.send(reply)


class Remote:
    """In the tests: a function or object of the sample, which stays where it is. Equal to nothing but itself."""

    def __init__(self, line: Line, key: Any) -> None:
        vars(self).update(_line=line, _key=key)

    def _ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        line: Line = vars(self)["_line"]
        return ask(line, operation, self, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __iter__(self) -> Any:
        return self._ask("iter")

    def __next__(self) -> Any:
        return self._ask("next")

    def __len__(self) -> Any:
        return self._ask("len")

    def __bool__(self) -> Any:
        return self._ask("bool")

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)


def ask(line: Line, operation: str, *args: Any, **kwargs: Any) -> Any:
    """What the sample replies. Raises what it raised, by name: a built-in exception, else one no test can know."""
    line.send([operation, encode(args, _reference), encode(kwargs, _reference)])
    outcome, *rest = line.receive()
    if outcome == "value":
        return decode(rest[0], lambda key: Remote(line, key))
    name, message = rest
    known = getattr(builtins, name, None)
    built_in = isinstance(known, type) and issubclass(known, Exception)
    kind: Any = known if built_in else type(name, (Exception,), {})
    error = kind.__new__(kind)  # some cannot be made of a message
    error.args = (message,)
    raise error


def _reference(value: Any) -> list[Any]:
    if isinstance(value, Remote):
        return ["kept", vars(value)["_key"]]
    raise TypeError(f"tests cannot hand a {type(value).__name__} to the program, only plain values")


def judge(line: Line, job: dict[str, Any], verdict: int) -> NoReturn:
    """Writes "started" and then, as JSON, [passed, reason] to `verdict`."""

    def end(passed: bool, reason: str) -> NoReturn:
        signal.alarm(0)  # one verdict only
        reason = "".join(letter if letter.isprintable() else "?" for letter in reason[:100])
        os.write(verdict, json.dumps([passed, reason]).encode())
        os._exit(0)

    if line.receive() != "ready":
        os._exit(1)
    os.write(verdict, b"started\n")
    signal.signal(signal.SIGALRM, lambda *_: end(False, "out of time"))
    signal.alarm(job["seconds"])
    space = {"__name__": "tests"}
    try:
        ask(line, "run", job["program"])
        exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), space)
        space.update({name: ask(line, "get", name) for name in job["names"]})
        exec(compile(job["tests"], "<tests>", "exec", dont_inherit=True), space)
    except Ended:
        pass
    except BaseException as error:
        end(False, type(error).__name__)
    if line.broken:  # also where the tests caught it
        end(False, "ended before its tests did")
    end(True, "passed")


def enter(limits: dict[str, int], uid: int) -> None:
    """Give up the rights to change user, if there are any, and limit this process, which can have no children."""
    if os.getuid() == 0 and uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for name, value in {
        "AS": limits["memory_mib"] << 20,
        "CPU": limits["seconds"] + 1,
        "NPROC": limits["threads"],
        "NOFILE": limits["open_files"],
        "SIGPENDING": 64,  # timers count too
        "FSIZE": 0,
        "CORE": 0,
    }.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    sys.set_int_max_str_digits(0)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


def main() -> None:
    role, settings = sys.argv[1], json.loads(sys.argv[2])
    if role == "sample":
        line = Line(os.dup(0), os.dup(1))
        enter(settings["limits"], settings["uid"])
        sample(line)
    else:
        job, verdict = json.load(sys.stdin), os.dup(1)
        enter(settings["limits"], settings["uid"])
        judge(Line(settings["incoming"], settings["outgoing"]), job, verdict)


if __name__ == "__main__":
    main()
