"""One run in a process of its own: `python -m localora.lab.compare.run_one JOB.json [PARENT]`; a crash costs one run.

PARENT is the id of the process that started it, for by the time this module is imported, that may be gone.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from peft import PeftConfig
from rich.console import Console

from localora.lab.compare.other_tasks import measure_published, measure_watched
from localora.lab.compare.plan import Published
from localora.lab.compare.runs import Job
from localora.lab.compare.store import Update, write_text
from localora.lab.inspect.matrix import effective_rank, stable_rank
from localora.lab.inspect.source import has_factors, open_source
from localora.lab.recipe.data_spec import DataSpec
from localora.lab.recipe.schema import Recipe, with_folder
from localora.lab.run.train import train
from localora.lab.training.folder import RunFolder, remove
from localora.lab.training.record import Evaluation, RunRecord
from localora.lab.training.trainer import TrainingError

DIVERGED_EXIT = 3  # the loss stopped being a number


def main(job: Path, parent: int) -> int:
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    given = Job.model_validate_json(job.read_bytes())
    recipe = with_folder(given.recipe, job.parent / "run")
    try:
        run(recipe, given.before, given.published, given.watch, given.watched_before, keep_adapter=given.keep_adapter)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return DIVERGED_EXIT
    return 0


def run(
    recipe: Recipe,
    before: Evaluation | None,
    published: Published | None = None,
    watch: Mapping[str, DataSpec] | None = None,
    watched_before: Mapping[str, Evaluation] | None = None,
    *,
    keep_adapter: bool,
) -> RunRecord:
    """Train, or continue what a killed process left, be it only the measuring.

    Beside the run's folder it leaves tasks.json, where tasks are `published`, watched.json, where the plan has tasks
    to `watch`, and update.json as the last.
    """
    folder = RunFolder(Path(str(recipe.output.folder)))
    record = _trained(folder)
    if record is None:
        resume = folder.record.exists() and folder.last_checkpoint() is not None
        console = Console(force_terminal=False, width=120)
        record = train(recipe, resume=resume, overwrite=not resume, before=None if resume else before, console=console)
    if published is not None and published.tasks:
        start = time.perf_counter()
        tasks = measure_published(recipe, folder, published)
        record.seconds["published"] = time.perf_counter() - start
        record.write(folder.record)
        write_text(folder.path.parent / "tasks.json", tasks.model_dump_json(indent=2) + "\n")
    if watch:
        start = time.perf_counter()
        watched = measure_watched(recipe, folder, watch, watched_before or {})
        record.seconds["watched"] = time.perf_counter() - start
        record.write(folder.record)
        write_text(folder.path.parent / "watched.json", watched.model_dump_json(indent=2) + "\n")
    write_text(folder.path.parent / "update.json", measure_update(folder).model_dump_json(indent=2) + "\n")
    if not keep_adapter or folder.result == folder.model:  # as large as the base model: its numbers are enough
        remove(folder.result)
    return record


def measure_update(folder: RunFolder) -> Update:
    """Median effective and stable rank of dW over the layers, from the adapter's factors, where it has such."""
    if folder.result == folder.model or not has_factors(PeftConfig.from_pretrained(str(folder.adapter))):
        return Update()
    source = open_source(folder.adapter, None, "default", None)
    spectra = [source.load(name).singular_values() for name in source.names]
    return Update(
        effective_rank=statistics.median(effective_rank(s) for s in spectra),
        stable_rank=statistics.median(stable_rank(s) for s in spectra),
        layers=len(spectra),
    )


def _trained(folder: RunFolder) -> RunRecord | None:
    """The record of a finished training whose adapter, or model, is still there to be measured."""
    record = RunRecord.read(folder.record) if folder.record.exists() and folder.result.exists() else None
    return record if record is not None and record.status == "finished" else None


def _end_with_parent(parent: int) -> None:
    """A comparison that was killed must not leave runs behind that write into folders it will start again."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid()))
