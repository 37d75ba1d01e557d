"""Programs that try to get out of the sandbox, to cheat in it, or to break it: the table of the sandbox's tests."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from benchmarks.ordeal.outcome import Tally

from localora.lab.evaluation.sandbox import Limits, Sample, Sandbox, SandboxError

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from hostile_samples import HOSTILE, TIME

HELD = "refused, and nothing outside was touched or seen"


def run_hostile_samples(model: Path, folder: Path, cases: int, seed: int = 0) -> Tally:
    """The first `cases` of the table, each followed by a look at what it was after."""
    tally = Tally("hostile samples in the sandbox", (HELD,))
    server = socket.create_server(("127.0.0.1", 0))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    canary, secret = folder / "canary", folder / "secret"
    canary.write_text("alive", encoding="utf-8")
    secret.write_text("SECRET WORDS", encoding="utf-8")
    outside = {
        "CANARY": repr(str(canary)),
        "SECRET)": repr(str(secret)) + ")",
        "TCP": str(server.getsockname()[1]),
        "UDP": str(datagrams.getsockname()[1]),
    }
    try:
        patient, hasty = Sandbox(Limits(seconds=300)), Sandbox(Limits(seconds=2))
    except SandboxError as error:
        tally.skipped = str(error).splitlines()[0]
        return tally
    for name, case in list(HOSTILE.items())[:cases]:
        program = case.program
        for word, meant in outside.items():
            program = program.replace(word, meant)
        verdict = (hasty if case.reason == TIME else patient).run(Sample(program, case.tests, ("solve",)))
        told = "SECRET" in verdict.reason or "got" in verdict.reason
        harmed = not canary.exists() or canary.read_text(encoding="utf-8") != "alive"
        outcome = "passed its tests" if verdict.passed else f"got out: {verdict.reason}" if told or harmed else HELD
        tally.note(outcome, name)
    for listener in (server, datagrams):
        listener.settimeout(0.1)
        try:
            listener.accept() if listener is server else listener.recv(1)
            tally.note("reached the network", "all")
        except TimeoutError:
            pass
        listener.close()
    return tally
