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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from made_up_record import write_record

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
    note["localora"] = str(find_spec("localora").origin)  # type: ignore[union-attr]
    (folder / "notes").mkdir(exist_ok=True)
    (folder / "notes" / f"{time.time_ns()}-{os.getpid()}.json").write_text(json.dumps(note), encoding="utf-8")
    if orders.get("hang_on") == raylet:
        threading.Event().wait()  # until the parent's end is this process's own
    if orders.get("kill_worker") == rate:
        os.kill(parent, signal.SIGKILL)
        threading.Event().wait()
    if orders.get("fail") == rate:
        print("the last words of a run")
        return 7
    for name in ("run/adapter/weights.bin", "run/checkpoints/checkpoint-1/weights.bin"):
        (job.parent / name).parent.mkdir(parents=True)
        (job.parent / name).write_bytes(bytes(range(256)) * 1000)  # too large for Ray to send beside the result
    write_record(job.parent, recipe, 1.0 + abs(math.log(rate / BEST_RATE)))
    return 0


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
