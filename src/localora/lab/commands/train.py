"""`localora train`: check, run, draw, and print what came of it."""

from __future__ import annotations

from rich.console import Console

from localora.lab.progress import say
from localora.lab.recipe.schema import Recipe
from localora.lab.report.console import print_record
from localora.lab.report.pictures import draw_run
from localora.lab.run.train import folder_of, train
from localora.lab.training.peers import leave_processes
from localora.lab.training.record import RunRecord
from localora.lifecycle.processes import is_main_process


def train_and_report(recipe: Recipe, *, overwrite: bool = False, resume: bool = False) -> RunRecord:
    """Run `recipe`; the pictures come after it, so that what was trained is safe before they are drawn.

    Raises:
        as :func:`localora.lab.run.train.train`.
        KeyboardInterrupt: passed on; what is printed says how the run goes on.
    """
    console = Console(quiet=not is_main_process())
    try:
        record = train(recipe, overwrite=overwrite, resume=resume, console=console)
    except KeyboardInterrupt:
        say(console, f"stopped; {folder_of(recipe).how_to_go_on()}")
        raise
    if is_main_process():
        draw_run(recipe, record)
    print_record(record, console)
    leave_processes()
    return record
