"""Kills at random moments of a run and of an export: the next start finds something whole, or says no."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.ordeal.outcome import Tally
from benchmarks.ordeal.tiny import end, export_in, forks, recipe, train_in
from safetensors.torch import load_file

from localora.lab.training.record import RunRecord

WEIGHTS = Path("adapter") / "adapter_model.safetensors"
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
