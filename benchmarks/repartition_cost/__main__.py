"""Measure. Both measurements run in processes of their own, so that peak memory is theirs alone."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from benchmarks.repartition_cost.event import peak_bytes, repartition
from benchmarks.repartition_cost.layers import BLOCKS, adapted, llama_shapes

from localora import CpsLoraConfig

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
SIZES = (1024, 2048, 4096, 8192, 16384)
REPEATS = 3
CONFIG = CpsLoraConfig(r=16, clusters=4, sketch=64)  # copied for each event, which writes into it


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.part:
        print(json.dumps(_llama(options.blocks) if options.part == "llama" else _curve(options.sizes)))
        return
    result: dict[str, Any] = {
        "config": {"r": CONFIG.r, "clusters": CONFIG.clusters, "sketch": CONFIG.sketch, "balance": CONFIG.balance},
        "threads": options.threads,
        "torch": torch.__version__,
        "llama_3_8b": _in_own_process("llama"),
        "square": _in_own_process("curve"),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "repartition_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    event = result["llama_3_8b"]
    print(f"{event['layers']} matrices: {event['cpu_seconds'] / event['layers']:.1f} s of processor time each")


def _llama(blocks: int) -> dict[str, Any]:
    """All linear matrices of the model, held at once as in training."""
    imported = peak_bytes()
    model = adapted(llama_shapes(blocks), CONFIG)
    held = peak_bytes()
    event = repartition(model, copy.copy(CONFIG))
    return event | {"peak_bytes": {"imports": imported, "before_the_event": held, "in_all": peak_bytes()}}


def _curve(sizes: list[int]) -> list[dict[str, Any]]:
    """One N x N matrix at a time; the quickest of some repeats, as a shared machine can only add."""
    rows = []
    for N in sizes:
        events = [repartition(adapted({"layer": (N, N)}, CONFIG), copy.copy(CONFIG)) for _ in range(REPEATS)]
        best = min(events, key=lambda event: event["cpu_seconds"])
        rows.append({"size": N, "peak_bytes": peak_bytes(), **best})
    return rows


def _in_own_process(part: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.repartition_cost", "--part", part, *sys.argv[1:]]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.repartition_cost",
        description="Seconds and memory to re-partition the 224 linear matrices of Llama-3-8B's shapes on random "
        "factors, and square matrices of growing size.",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="Llama blocks of seven matrices (default 32)")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=("llama", "curve"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
