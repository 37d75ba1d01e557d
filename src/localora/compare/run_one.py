"""One run in a process of its own: `python -m localora.compare.run_one JOB.json`. A crash here costs this run only."""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path

from rich.console import Console

from localora.compare.store import Update, write_text
from localora.inspect.source import open_source
from localora.inspect.spectrum import effective_rank, stable_rank
from localora.recipe import Recipe, with_folder
from localora.recipe_file import validate_recipe
from localora.training.folder import RunFolder, remove
from localora.training.record import Evaluation, RunRecord
from localora.training.run import train
from localora.training.trainer import TrainingError

DIVERGED_EXIT = 3  # the loss stopped being a number
WITH_FACTORS = ("lora", "rslora", "g-lora", "cps-lora", "hybrid")  # dW = B A is all of their update


def main(job: Path) -> int:
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    values = json.loads(job.read_text(encoding="utf-8"))
    folder = job.parent
    recipe = with_folder(validate_recipe(values["recipe"]), folder / "run")
    before = Evaluation.model_validate(values["before"]) if values["before"] else None
    try:
        run(recipe, before, keep_adapter=values["keep_adapter"])
    except TrainingError as error:
        print(error, file=sys.stderr)
        return DIVERGED_EXIT
    return 0


def run(recipe: Recipe, before: Evaluation | None, *, keep_adapter: bool) -> RunRecord:
    """Train, or continue what a killed process left; then leave update.json beside the run's folder."""
    folder = RunFolder(Path(str(recipe.output.folder)))
    resume = _resumable(folder)
    console = Console(force_terminal=False, width=120)
    record = train(recipe, resume=resume, overwrite=not resume, before=None if resume else before, console=console)
    write_text(folder.path.parent / "update.json", measure_update(recipe, folder).model_dump_json(indent=2) + "\n")
    if not keep_adapter:
        remove(folder.adapter)
    return record


def measure_update(recipe: Recipe, folder: RunFolder) -> Update:
    """Median effective and stable rank of dW over the layers, from the adapter's factors."""
    if recipe.method.name not in WITH_FACTORS:
        return Update()
    source = open_source(folder.adapter, None, "default", None)
    spectra = [source.load(name).singular_values() for name in source.names]
    return Update(
        effective_rank=statistics.median(effective_rank(s) for s in spectra),
        stable_rank=statistics.median(stable_rank(s) for s in spectra),
        layers=len(spectra),
    )


def _resumable(folder: RunFolder) -> bool:
    return folder.record.exists() and folder.last_checkpoint() is not None


def _end_with_parent(parent: int) -> None:
    """A comparison that was killed must not leave runs behind that write into folders it will start again."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
