"""Kills at random moments of a run, of an export, of a comparison: the next start finds something whole, or says no."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.ordeal.outcome import Tally
from benchmarks.ordeal.tiny import end, export_in, forks, recipe, train_in
from safetensors.torch import load_file

from localora.lab.training.record import RunRecord

WEIGHTS = Path("adapter") / "adapter_model.safetensors"
KILLS_OF_ONE = 4  # comparisons, so that each is killed in its midst and ends
EXPORT = Path("lora") / "adapter_model.safetensors"


def kill_runs(model: Path, folder: Path, kills: int, seed: int = 0) -> Tally:
    """Kill `localora train` at any moment between its start and its end; the next start must end as if nothing was."""
    tally = Tally("`train` killed, then resumed or started anew", ("the same weights and losses, bitwise",))
    rng, context = random.Random(seed), forks()
    straight, seconds = _straight(model, folder)
    for number in range(kills):
        out = folder / f"killed-{number}"
        values, said = recipe(model, out), str(folder / "said")
        moment = rng.uniform(0, seconds)
        process = context.Process(target=train_in, args=(values, said, False, False))
        process.start()
        time.sleep(moment)
        process.kill()
        process.join()
        tally.note(_continued(values, out, said, straight), f"kill {number} after {moment:.2f} s")
    return tally


def _straight(model: Path, folder: Path) -> tuple[Path, float]:
    """A run that is left alone, and how long it takes with everything imported."""
    context, out = forks(), folder / "straight"
    for overwrite in (False, True):  # the first one starts the server
        start = time.perf_counter()
        process = context.Process(target=train_in, args=(recipe(model, out), str(folder / "said"), False, overwrite))
        process.start()
        if end(process) != 0:
            raise RuntimeError((folder / "said").read_text(encoding="utf-8"))
    return out, time.perf_counter() - start


def _continued(values: dict[str, Any], out: Path, said: str, straight: Path) -> str:
    """Resume; where that is refused for a reason, start anew; where the run is over, look at it."""
    if (out / "run.json").exists() and RunRecord.read(out / "run.json").status != "finished":
        code = _run(values, said, resume=True)
        if code == 2 and "before its first checkpoint" in Path(said).read_text(encoding="utf-8"):
            code = _run(values, said, overwrite=True)
    elif not (out / "run.json").exists():
        code = _run(values, said)
    else:
        code = 0
    if code != 0:
        return f"ended with {code}: {Path(said).read_text(encoding='utf-8')[:200]}"
    record, expected = RunRecord.read(out / "run.json"), RunRecord.read(straight / "run.json")
    same = record.status == "finished" and record.curve == expected.curve
    same &= record.after is not None and expected.after is not None and record.after.loss == expected.after.loss
    for name in (WEIGHTS, EXPORT):
        ours, theirs = load_file(out / name), load_file(straight / name)
        same &= ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    return "the same weights and losses, bitwise" if same else "other weights or losses"


def _run(values: dict[str, Any], said: str, resume: bool = False, overwrite: bool = False) -> int:
    process = forks().Process(target=train_in, args=(values, said, resume, overwrite))
    process.start()
    return int(end(process) or 0)


def kill_exports(model: Path, folder: Path, kills: int, seed: int = 0) -> Tally:
    """Kill an export over an old one: what is there is the old one or the new one, weights and config together."""
    tally = Tally("export over an old one, killed", ("the old one whole", "the new one whole"))
    rng, context, said = random.Random(seed), forks(), str(folder / "said")
    first, _ = _straight(model, folder / "one")
    second = recipe(model, folder / "two" / "straight")
    second["method"] |= {"r": 12}  # its export has another rank, so weights and config can contradict
    (folder / "two").mkdir()
    if _run(second, said) != 0:
        raise RuntimeError(Path(said).read_text(encoding="utf-8"))
    adapters = [first / "adapter", folder / "two" / "straight" / "adapter"]
    wholes, seconds = [], 0.0
    for number, adapter in enumerate(adapters):
        start = time.perf_counter()
        process = context.Process(target=export_in, args=(str(adapter), str(folder / f"whole-{number}"), said))
        process.start()
        if end(process) != 0:
            raise RuntimeError(Path(said).read_text(encoding="utf-8"))
        wholes.append(_files(folder / f"whole-{number}"))
        seconds = time.perf_counter() - start
    out = folder / "plain"
    for number in range(kills):
        if not out.exists():
            end(_started(context, adapters[0], out, said))
        old = _files(out)
        process = _started(context, adapters[1] if old == wholes[0] else adapters[0], out, said)
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.join()
        now = _files(out) if out.exists() else None
        outcome = (
            "the old one whole" if now == old else "the new one whole" if now in wholes else f"torn: {now and set(now)}"
        )
        tally.note(outcome, f"kill {number}")
    return tally


def _started(context: Any, adapter: Path, out: Path, said: str) -> Any:
    process = context.Process(target=export_in, args=(str(adapter), str(out), said))
    process.start()
    return process


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".md"}


def kill_comparisons(model: Path, folder: Path, kills: int, seed: int = 0) -> Tally:
    """Kill `localora compare` again and again; the same command ends it, with no record touched and no loss another."""
    goes_on, ended = "no finished record was touched", "ended as one that was left alone: every loss bitwise"
    tally = Tally("`compare` killed, then started again", (goes_on, ended))
    rng = random.Random(seed)
    plan = folder / "plan.yaml"
    plan.write_text(yaml.safe_dump(_plan(model)), encoding="utf-8")
    start = time.perf_counter()
    alone = folder / "alone"
    if (said := _compare(plan, alone)) is not None:
        raise RuntimeError(said)
    seconds, expected = time.perf_counter() - start, _losses(alone)
    done = 0
    while done < kills:
        out = folder / f"killed-{done}"
        finished: dict[str, bytes] = {}
        for _ in range(min(KILLS_OF_ONE, kills - done)):
            _compare(plan, out, rng.uniform(0.05, 0.5) * seconds)
            done += 1
            changed = [name for name, before in finished.items() if (out / name).read_bytes() != before]
            tally.note(f"made again: {changed}" if changed else goes_on, f"kill {done}")
            finished |= _finished(out)
        said = _compare(plan, out)
        same = said is None and _losses(out) == expected
        tally.note(ended if same else f"ended otherwise: {said or 'other losses'}", f"{out.name}, started again")
    return tally


def _compare(plan: Path, out: Path, kill_after: float | None = None) -> str | None:
    """Run it, and kill all its processes after so many seconds; what it died of, if it was not killed."""
    command = [sys.executable, "-m", "localora.cli", "compare", str(plan), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, error = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None
    return error.decode()[-300:] if process.returncode else None


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
        "methods": {"lora": None},  # five runs, each a process of its own: what is killed is the comparison
        "headroom": [],
        "learning_rates": {"grid": [1e-3, 1e-2, 1e-1], "validation_examples": 4, "widen": 0},
        "seeds": [0, 1],
        "training": {"steps": 4, "batch_size": 2},
        "evaluation": {"examples": 4, "batch_size": 4, "max_new_tokens": 4},
    }
