"""Two processes that write into one folder: one does, the other is told who."""

from __future__ import annotations

import random
import time
from pathlib import Path

from benchmarks.ordeal.kills import _continued, _straight
from benchmarks.ordeal.outcome import Tally
from benchmarks.ordeal.tiny import REFUSED, end, forks, recipe, train_in


def two_writers(model: Path, folder: Path, times: int, seed: int = 0) -> Tally:
    """Start a second run, a resume or an overwriting one, at a random moment of the first."""
    told = "one run whole, the other refused by name"
    tally = Tally("two `train` in one folder", (told,))
    rng, context = random.Random(seed), forks()
    straight, seconds = _straight(model, folder)
    for number in range(times):
        out = folder / f"shared-{number}"
        how = rng.choice(((False, False), (True, False), (False, True)))
        said = [str(folder / f"said-{which}") for which in (1, 2)]
        first = context.Process(target=train_in, args=(recipe(model, out), said[0], False, False))
        first.start()
        while how != (False, False) and not (out / "run.json").exists() and first.is_alive():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, seconds / 4))
        second = context.Process(target=train_in, args=(recipe(model, out), said[1], *how))
        second.start()
        codes = [end(first), end(second)]
        texts = [Path(path).read_text(encoding="utf-8") if Path(path).exists() else "" for path in said]
        refused = "in use by another process" in texts[codes.index(REFUSED)] if REFUSED in codes else False
        if sorted(map(int, map(bool, codes))) != [0, 1] or not refused:
            tally.note(f"ended with {codes}: {texts}"[:300], f"{number}, resume and overwrite {how}")
            continue
        whole = _continued(recipe(model, out), out, said[0], straight)
        tally.note(told if whole.startswith("the same") else whole, f"{number}, {how}")
        for path in said:
            Path(path).unlink(missing_ok=True)
    return tally
