"""A disk that fills: a tmpfs, shrunk to little more than is used, at each stage of a run and for an export."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.ordeal.kills import _continued, _files, _started, _straight
from benchmarks.ordeal.outcome import Tally
from benchmarks.ordeal.tiny import REFUSED, end, forks, recipe, train_in

STAGES = (".lock", "run.json", "checkpoints/*-2", "checkpoints/*-4", "checkpoints/*-8", ".adapter.*", ".lora.*")
SIZE = 1024 * 2**20  # before: more than a run asks for; nothing of it is used


def fill_disks(model: Path, folder: Path, times: int, seed: int = 0) -> Tally:
    """The run ends with a sentence that names the disk; given space again, it goes on and ends as if nothing was."""
    good = ("named, then resumed: the same weights and losses, bitwise", "had room enough")
    tally = Tally("a disk fills during `train`", good)
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(_mount(disk, SIZE), capture_output=True, check=False).returncode != 0:
        tally.skipped = "no tmpfs can be mounted here"
        return tally
    rng, context, said = random.Random(seed), forks(), str(folder / "said")
    straight, _ = _straight(model, folder)
    try:
        for number in range(times):
            out = disk / f"run-{number}"
            stage, room = STAGES[number % len(STAGES)], rng.choice((0, 4096, 16384, 65536, 262144))
            process = context.Process(target=train_in, args=(recipe(model, out), said, False, False))
            process.start()
            while process.is_alive() and not any(disk.glob(f"run-{number}/{stage}")):
                time.sleep(0.001)
            _shrink(disk, room)
            code = end(process)
            subprocess.run(_mount(disk, SIZE, "remount"), check=True)
            of = f"{room} bytes left once there is {stage}"
            if code == 0:
                tally.note("had room enough", of)
                continue
            text = Path(said).read_text(encoding="utf-8")
            if code != REFUSED or "space" not in text:
                tally.note(f"ended with {code}: {text[:200]}", of)
                continue
            tally.note(f"named, then resumed: {_continued(recipe(model, out), out, said, straight)}", of)
            shutil.rmtree(out)
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    return tally


def fill_disks_of_exports(model: Path, folder: Path, times: int, seed: int = 0) -> Tally:
    """An export over an old one on disks of ever more room, from none to enough: named, and the old one as it was."""
    named, room_enough = "named, and the old export is as it was", "had room enough"
    tally = Tally("a disk fills during an export", (named, room_enough))
    disk, said, context = folder / "disk", str(folder / "said"), forks()
    disk.mkdir()
    if subprocess.run(_mount(disk, SIZE), capture_output=True, check=False).returncode != 0:
        tally.skipped = "no tmpfs can be mounted here"
        return tally
    straight, _ = _straight(model, folder)
    out = disk / "plain"
    try:
        end(_started(context, straight / "adapter", out, said))
        old, whole = _files(out), shutil.disk_usage(disk).used
        for number in range(times):
            room = 4096 * (5 * number * whole // (4 * times) // 4096)  # from none to more than enough
            subprocess.run(_mount(disk, whole + room, "remount"), check=True)
            code = end(_started(context, straight / "adapter", out, said))
            told = Path(said).read_text(encoding="utf-8") if code else ""
            left = sorted(path.name for path in disk.iterdir())
            if _files(out) != old or left != ["plain"]:
                tally.note(f"left {left}", f"{room} bytes of room")
            elif code == 0:
                tally.note(room_enough, "")
            else:
                sound = code == REFUSED and "No space left" in told
                tally.note(named if sound else f"ended with {code}: {told[:200]}", f"{room} bytes of room")
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    return tally


def _shrink(disk: Path, room: int) -> None:
    """Leave so many bytes; anew where the run has written more in the meantime, which the system then refuses."""
    while True:
        size = max(4096, shutil.disk_usage(disk).used + room)
        if subprocess.run(_mount(disk, size, "remount"), capture_output=True, check=False).returncode == 0:
            return


def _mount(disk: Path, size: int, *options: str) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size}"]), "tmpfs", str(disk)]
