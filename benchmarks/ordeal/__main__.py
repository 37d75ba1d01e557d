"""`make ordeal`: everything that can be done to a run, and a table of what was left; docs/reliability.md shows it.

`--short` is what the tests do.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from benchmarks.ordeal.adapters import damage_adapters
from benchmarks.ordeal.comparisons import kill_comparisons
from benchmarks.ordeal.disks import fill_disks, fill_disks_of_exports
from benchmarks.ordeal.kills import kill_exports, kill_runs
from benchmarks.ordeal.outcome import Tally, table
from benchmarks.ordeal.samples import run_hostile_samples
from benchmarks.ordeal.tiny import save_model
from benchmarks.ordeal.writers import two_writers

from localora.files import write_file
from localora.lab.machine import describe_machine

Ordeal = Callable[[Path, Path, int, int], Tally]
ORDEALS: dict[str, tuple[Ordeal, int, int]] = {  # cases of the short form and of the long one
    "runs": (kill_runs, 8, 50),
    "exports": (kill_exports, 10, 50),
    "disks": (fill_disks, 6, 14),
    "writers": (two_writers, 4, 10),
    "full exports": (fill_disks_of_exports, 12, 60),
    "samples": (run_hostile_samples, 12, 1000),
    "adapters": (damage_adapters, 100, 2000),
    "comparisons": (kill_comparisons, 2, 50),
}
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = Path(__file__).parent / "results" / "ordeal.json"
BLOCK = re.compile(r"(<!-- ordeal -->\n).*?(<!-- end -->)", re.DOTALL)


def undergo(name: str, cases: int, seed: int) -> Tally:
    """One ordeal, in a folder of its own."""
    torch.set_num_threads(1)
    ordeal, _, _ = ORDEALS[name]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / name
        folder.mkdir()
        start = time.perf_counter()
        tally = ordeal(save_model(Path(work) / "model"), folder, cases, seed)
    print(f"{tally.ordeal}: {tally.cases} cases in {time.perf_counter() - start:.0f} s", flush=True)
    for failure in tally.failures[:20]:
        print(f"    {failure}", flush=True)
    return tally


def keep(name: str, tally: Tally, seed: int) -> None:
    """In place of what the ordeal came to before, in the results and on the page."""
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    kept[name] = {"tally": asdict(tally), "seed": seed, "machine": describe_machine()}
    write_file(RESULTS, json.dumps(kept, indent=1) + "\n")
    tallies = [Tally(**kept[known]["tally"]) for known in ORDEALS if known in kept]
    page = PAGE.read_text(encoding="utf-8")
    write_file(PAGE, BLOCK.sub(lambda match: f"{match[1]}{table(tallies)}\n{match[2]}", page))


def kept(name: str, seed: int) -> Tally | None:
    """What an ordeal came to with this seed, if the results hold it."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")).get(name) if RESULTS.exists() else None
    return Tally(**found["tally"]) if found and found["seed"] == seed else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ordeal", description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="as the tests do; the page is left as it is")
    parser.add_argument("--only", choices=ORDEALS, nargs="+", default=list(ORDEALS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="so many of each, instead of the long form's number")
    parser.add_argument("--resume", action="store_true", help="leave out what the results hold of this seed already")
    arguments = parser.parse_args()
    tallies = []
    for name in arguments.only:
        if arguments.resume and (known := kept(name, arguments.seed)):
            tallies.append(known)
            continue
        _, few, many = ORDEALS[name]
        tallies.append(undergo(name, few if arguments.short else arguments.cases or many, arguments.seed))
        if not arguments.short:
            keep(name, tallies[-1], arguments.seed)
    print(table(tallies))
    return 0 if all(tally.held for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
