"""Stands in for `localora.lab.compare.run_one` where training does not matter: a process that leaves a record at once.

QUICK_RUN, JSON in the environment, may have it do otherwise: {"lora 0.1": "crash"} for a method and a learning rate.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from made_up_record import write_record

DIVERGED_EXIT = 3  # localora is not imported: that would take longer than the test
BEST = 0.01


def main(path: Path) -> int:
    job = json.loads(path.read_text())
    recipe = job["recipe"]
    rate = recipe["training"]["learning_rate"]
    act = json.loads(os.environ.get("QUICK_RUN", "{}")).get(f"{path.parent.parent.name} {rate:g}")
    if act == "crash":
        print("about to crash", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    elif act == "diverge":
        print("the loss became nan")
        return DIVERGED_EXIT
    elif act == "hang":
        signal.pause()  # until it is ended
    elif act == "nothing":
        return 0
    known = {"before": job["before"]} if job["before"] else {}
    machine = {"threads": int(os.environ["OMP_NUM_THREADS"])}
    write_record(path.parent, recipe, 1.0 if rate == BEST else 1.5, machine=machine, **known)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
