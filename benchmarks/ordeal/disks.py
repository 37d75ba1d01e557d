"""A disk that fills while a run goes on: a tmpfs, shrunk to what is used and a little more at a random moment."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.ordeal.kills import _continued, _straight
from benchmarks.ordeal.outcome import Tally
from benchmarks.ordeal.tiny import REFUSED, end, forks, recipe, train_in

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
    straight, seconds = _straight(model, folder)
    try:
        for number in range(times):
            out = disk / f"run-{number}"
            moment, room = rng.uniform(0.3, 1.0) * seconds, rng.choice((0, 4096, 16384, 65536, 262144))
            process = context.Process(target=train_in, args=(recipe(model, out), said, False, False))
            process.start()
            time.sleep(moment)
            used = shutil.disk_usage(disk).used
            subprocess.run(_mount(disk, max(4096, used + room), "remount"), check=True)
            code = end(process)
            subprocess.run(_mount(disk, SIZE, "remount"), check=True)
            of = f"{room} bytes left after {moment:.2f} s"
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


def _mount(disk: Path, size: int, *options: str) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size}"]), "tmpfs", str(disk)]
