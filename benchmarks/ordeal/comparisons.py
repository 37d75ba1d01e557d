"""Kills of a comparison: the same command ends it, with no finished record touched and no loss another.

The comparison and its runs are the command's own code, in processes of their own as ever; but these are forked with
everything imported, since a fresh Python would spend most of a kill's time in imports.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import yaml
from benchmarks.ordeal.outcome import Tally
from benchmarks.ordeal.tiny import as_forked, console, end, forks

from localora.lab.commands.compare import run_comparison
from localora.lab.compare import run_one
from localora.lab.compare.workers import local
from localora.lab.training.record import RunRecord

KILLS_OF_ONE = 4  # comparisons, so that each is killed in its midst and ends
KEPT = "no finished record touched, the same losses in the end, bitwise"


def kill_comparisons(model: Path, folder: Path, kills: int, seed: int = 0) -> Tally:
    """Kill `localora compare` with its runs again and again, then let the same command end it."""
    tally = Tally("`compare` killed, then started again", (KEPT,))
    rng, plan, said = random.Random(seed), folder / "plan.yaml", folder / "said"
    plan.write_text(yaml.safe_dump(_plan(model)), encoding="utf-8")
    seconds = 0.0
    for name in ("first", "alone"):  # the first one starts the server
        start = time.perf_counter()
        if _compare(plan, folder / name, said) != 0:
            raise RuntimeError(said.read_text(encoding="utf-8"))
        seconds = time.perf_counter() - start
    expected, done, out = _losses(folder / "alone"), 0, folder / "killed-0"
    while done < kills:
        finished: dict[str, bytes] = {}
        outcomes: list[tuple[str, str]] = []
        for _ in range(min(KILLS_OF_ONE, kills - done)):
            moment = rng.uniform(0, seconds)
            if _compare(plan, out, said, moment) is not None:
                break  # it was over before
            changed = [name for name, before in finished.items() if (out / name).read_bytes() != before]
            outcomes.append((f"made again: {changed}" if changed else KEPT, f"{out.name} after {moment:.2f} s"))
            finished |= _finished(out)
        code = _compare(plan, out, said)
        changed = [name for name, before in finished.items() if (out / name).read_bytes() != before]
        if code != 0:
            outcomes = [(f"ended with {code}: {said.read_text(encoding='utf-8')[:200]}", of) for _, of in outcomes]
        elif changed or _losses(out) != expected:
            outcomes = [(f"ended otherwise: {changed or 'other losses'}", of) for _, of in outcomes]
        for outcome, of in outcomes:
            tally.note(outcome, of)
        done += len(outcomes)
        out = folder / f"killed-{done}-{len(outcomes)}"
    return tally


def _compare(plan: Path, out: Path, said: Path, kill_after: float | None = None) -> int | None:
    """Its exit code; None where it and its runs were killed after so many seconds."""
    process = forks().Process(target=_compare_in, args=(str(plan), str(out), str(said)))
    process.start()
    code = end(process, kill_after)
    if code is None:
        try:
            os.killpg(process.pid or 0, signal.SIGKILL)
        except ProcessLookupError:  # it has not even begun
            process.kill()
        process.join()
        return None if process.exitcode == -signal.SIGKILL else process.exitcode
    return code


def _compare_in(plan: str, out: str, said: str) -> None:
    os.setsid()  # so that its runs can be killed with it
    local.subprocess = SimpleNamespace(Popen=_Fork, DEVNULL=None, STDOUT=None)  # type: ignore[assignment]
    as_forked(said, lambda: run_comparison(Path(plan), console(), out=Path(out)))


class _Fork:
    """What a pool needs of subprocess.Popen, for `python -m localora.lab.compare.run_one JOB PARENT` and no other."""

    def __init__(self, command: list[str], *, stdout: BinaryIO, **_: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            code = run_one.main(Path(command[-2]), int(command[-1]))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _losses(out: Path) -> dict[str, Any]:
    """Of every run that is over: its curve, and its losses before and after."""
    records = {path: RunRecord.read(out / path) for path in _finished(out)}
    return {path: (r.curve, r.before.loss, r.after and r.after.loss) for path, r in records.items()}


def _finished(out: Path) -> dict[str, bytes]:
    """The records of runs that are over, as they lie there."""
    over = [path.parent / "run" / "run.json" for path in out.glob("*/*/*/update.json")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in over}


def _plan(model: Path) -> dict[str, Any]:
    return {
        "model": {"name": str(model), "dtype": "float32"},
        "tasks": {"sums": {"task": "arithmetic", "train_size": 24, "validation_size": 6, "test_size": 6}},
        "r": 4,
        "target_modules": ["q_proj", "down_proj"],
        "methods": {"lora": None, "cps-lora": {"clusters": 2, "calibration_steps": 2}},
        "headroom": [],
        "learning_rates": {"grid": [1e-3, 1e-2, 1e-1], "validation_examples": 4, "widen": 0},
        "seeds": [0, 1],
        "training": {"steps": 4, "batch_size": 2, "checkpoint_every": 2},
        "evaluation": {"examples": 4, "batch_size": 4, "max_new_tokens": 4},
    }
