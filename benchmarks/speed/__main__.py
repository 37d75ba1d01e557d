"""Measure, and write the tables of two pages of docs/ from what was measured."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.speed import calibrate, files, growth, inference, startup, training
from benchmarks.speed.isolated import ROOT
from benchmarks.speed.page import write_page
from benchmarks.speed.store import Cells, StoreError, folder_name, run_section
from benchmarks.speed.workloads import Settings

from localora.lab.model.dtype import why_slow

SECTIONS: dict[str, Callable[[Settings], Cells]] = {
    "training": training.time_cells,
    "saved": training.saved_cells,
    "memory": training.memory_cells,
    "inference": inference.cells,
    "files": files.cells,
    "calibration": calibrate.cells,
    "startup": startup.cells,
    "growth": growth.cells,
    "compile": training.compile_cells,
}
CUDA_ONLY = ("compile",)
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmark-tables.md")


def main() -> None:
    options = _parser().parse_args()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.threads:
        torch.set_num_threads(options.threads)
    out = options.out or (ROOT / "runs" / "speed-tiny" if options.tiny else RESULTS / folder_name(device))
    until = time.monotonic() + 60 * options.minutes
    settings = Settings(out, device, options.rounds, options.random, options.tiny, until)
    chosen = options.only or [name for name in SECTIONS if name not in CUDA_ONLY or device.type == "cuda"]
    try:
        if not options.report:
            sections = {
                name: {cell: measure for cell, measure in SECTIONS[name](settings).items() if options.cells in cell}
                for name in chosen
            }
            if not (options.tiny or options.emulated):
                check_dtype(sections, device)
            for name, cells in sections.items():
                run_section(name, cells, settings, again=options.again, say=_say)
        if options.tiny or options.out:
            return
        for page in PAGES:
            write_page(page, RESULTS)
            _say(f"tables written to {page.relative_to(ROOT)}")
    except StoreError as error:
        sys.exit(f"error: {error}")


def check_dtype(sections: dict[str, Cells], device: torch.device) -> None:
    """Cells are in bfloat16 unless their name says fp32.

    Raises:
        StoreError: some are in a dtype that the device emulates; their figures would say nothing of any other.
    """
    slow = why_slow("bfloat16", device)
    refused = [f"{name}: {cell}" for name, cells in sections.items() for cell in cells if "fp32" not in cell]
    if slow and refused:
        raise StoreError(
            f"{len(refused)} cells are in bfloat16 ({refused[0]}, ...), and {slow}. --cells fp32 measures the others, "
            "--emulated these too"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Time and memory of adapters, ours beside PEFT's. What was measured already is not measured again, "
        "so a run that was stopped goes on where it stopped.",
    )
    parser.add_argument("--only", nargs="+", metavar="SECTION", choices=SECTIONS, help=", ".join(SECTIONS))
    parser.add_argument("--cells", default="", metavar="TEXT", help="of those, only the cells whose name holds TEXT")
    parser.add_argument("--again", action="store_true", help="measure these sections anew")
    parser.add_argument("--report", action="store_true", help="measure nothing, only write the tables")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each figure (default 7)")
    parser.add_argument("--random", action="store_true", help="random weights for SmolLM2, so that nothing is fetched")
    parser.add_argument("--emulated", action="store_true", help="measure bfloat16 also where the machine emulates it")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no cell after so many (default: none)"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads of torch (default: torch's own choice)")
    parser.add_argument("--out", type=Path, help="folder of the JSON files (default: benchmarks/speed/results/DEVICE)")
    parser.add_argument(
        "--tiny", action="store_true", help="toy sizes into runs/speed-tiny: a test of the script alone"
    )
    return parser


if __name__ == "__main__":
    main()
