"""Stands in for `localora.compare.run_one` where training does not matter: a process that leaves a record at once.

QUICK_RUN, JSON in the environment, may have it do otherwise: {"lora 0.1": "crash"} for a method and a learning rate.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

DIVERGED_EXIT = 3  # localora is not imported: that would take longer than the test
BEST = 0.01


def main(path: Path) -> int:
    job = json.loads(path.read_text())
    recipe = job["recipe"]
    rate, steps = recipe["training"]["learning_rate"], recipe["training"]["steps"]
    act = json.loads(os.environ.get("QUICK_RUN", "{}")).get(f"{path.parent.parent.name} {rate:g}")
    if act == "crash":
        print("about to crash", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    elif act == "diverge":
        print("the loss became nan")
        return DIVERGED_EXIT
    elif act == "hang":
        time.sleep(60)
    elif act == "nothing":
        return 0
    loss = 1.0 if rate == BEST else 1.5
    record = {
        "status": "finished",
        "recipe": recipe,
        "seed": recipe["training"]["seed"],
        "machine": {"threads": int(os.environ["OMP_NUM_THREADS"])},
        "data": {"name": "sums", "sizes": {}, "hashes": {}},
        "parameters": {"trainable": 640, "lora_same_r": 640, "base": 10_000},
        "before": job["before"] or {"loss": 3.0, "examples": 4, "seconds": 7.5},
        "after": {"loss": loss, "examples": 4},
        "curve": {"held_out": [{"step": steps, "loss": loss}]},
        "seconds": {"load": 1.0, "train": 10.0},
    }
    (path.parent / "run").mkdir(exist_ok=True)
    (path.parent / "run" / "run.json").write_text(json.dumps(record))
    (path.parent / "update.json").write_text("{}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
