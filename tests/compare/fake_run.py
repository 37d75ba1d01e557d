"""A run without a model: `python -m fake_run JOB.json PARENT`. Its "model folder" holds orders, and then its notes.

orders.json   hang_on: the raylet (by process id) on whose node it never ends; kill_worker, fail: rates at which it does
notes/        one file a start
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

BEST_RATE = 2e-3


def main(job: Path, parent: int) -> int:
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    recipe: dict[str, Any] = json.loads(job.read_text(encoding="utf-8"))["recipe"]
    folder = Path(recipe["model"]["name"])
    orders = json.loads((folder / "orders.json").read_text(encoding="utf-8"))
    rate, raylet = recipe["training"]["learning_rate"], int(os.environ["RAY_RAYLET_PID"])
    seen = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    run = f"{recipe['method']['name']} {rate:g} {recipe['training']['seed']}"
    note = {"run": run, "raylet": raylet, "pid": os.getpid(), "folder": str(job.parent), "environment": seen}
    (folder / "notes").mkdir(exist_ok=True)
    (folder / "notes" / f"{time.time_ns()}-{os.getpid()}.json").write_text(json.dumps(note), encoding="utf-8")
    if orders.get("hang_on") == raylet:
        time.sleep(600)
    if orders.get("kill_worker") == rate:
        os.kill(parent, signal.SIGKILL)
        time.sleep(600)
    if orders.get("fail") == rate:
        print("the last words of a run")
        return 7
    _write(job.parent, recipe)
    return 0


def _write(folder: Path, recipe: dict[str, Any]) -> None:
    evaluation = {"loss": 2.0, "examples": 1}
    loss = 1.0 + abs(math.log(recipe["training"]["learning_rate"] / BEST_RATE))
    record = {
        "status": "finished",
        "recipe": recipe,
        "seed": recipe["training"]["seed"],
        "versions": {},
        "machine": {},
        "data": {"name": "sums", "sizes": {}, "hashes": {}},
        "parameters": {"trainable": 1000, "lora_same_r": 1000, "base": 10_000},
        "before": evaluation,
        "after": evaluation | {"loss": loss},
        "curve": {"held_out": [{"step": recipe["training"]["steps"], "loss": loss}]},
        "seconds": {"load": 0.1, "train": 0.1},
    }
    for name in ("run/adapter/weights.bin", "run/checkpoints/checkpoint-1/weights.bin"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(bytes(range(256)) * 1000)  # too large for Ray to send beside the result
    (folder / "update.json").write_text(json.dumps({"effective_rank": 3.0, "layers": 1}), encoding="utf-8")
    (folder / "run" / "run.json").write_text(json.dumps(record), encoding="utf-8")


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
