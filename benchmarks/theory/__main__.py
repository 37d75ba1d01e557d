"""Run the grid, write the summary and the pictures, and fill the tables of the page."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from benchmarks.theory.figures import draw_overlap, draw_parameters
from benchmarks.theory.grid import FULL, QUICK, cells, measure
from benchmarks.theory.store import Store
from benchmarks.theory.summary import summarise
from benchmarks.theory.tables import SECTIONS, fill_page

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "theory.md"


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` default to those of the process."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    scale = QUICK if options.quick else FULL
    out = options.out or (ROOT / "runs" / "theory-quick" if options.quick else RESULTS)
    store = Store(out / "runs.jsonl", say=_say)
    for cell in cells(scale):
        measure(cell, scale, store)
    summary = summarise(scale, store) | {"torch": torch.__version__}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw_parameters(summary, out / "parameters.png")
    draw_overlap(summary, out / "overlap.png")
    if out == RESULTS:
        fill_page(PAGE, summary)
    for section in SECTIONS.values():
        print(section(summary), end="\n\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.theory",
        description="Planted teachers: does CPS-LoRA need K times fewer parameters than LoRA? Runs that are there are "
        "not run again, so it can be stopped and started.",
    )
    parser.add_argument("--quick", action="store_true", help="K = 4, two seeds, few steps: under a minute")
    parser.add_argument("--out", type=Path, help="folder of results (default benchmarks/theory/results)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1: the matrices are small)")
    return parser


if __name__ == "__main__":
    main()
