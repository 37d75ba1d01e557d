"""`localora compare` from plan file to report: refuse first, then run, then tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from localora.lab.compare.budgets import resolve
from localora.lab.compare.collected import collect
from localora.lab.compare.comparison import Comparison
from localora.lab.compare.execute import execute
from localora.lab.compare.guards import check_budgets, check_data, check_rate_seeds, check_same_data
from localora.lab.compare.plan import PlanError
from localora.lab.compare.plan_file import load_plan
from localora.lab.compare.same_machine import check_same_machine, this_machine
from localora.lab.compare.schedule import schedule
from localora.lab.compare.store import Store
from localora.lab.compare.workers.cluster import ClusterPool
from localora.lab.compare.workers.local import LocalPool, Pool
from localora.lab.progress import say
from localora.lab.report.comparison.console import print_comparison, print_preview
from localora.lab.report.comparison.write import write_report


def run_comparison(
    path: Path,
    console: Console,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    jobs: int = 1,
    cluster: str | None = None,
    cpus: float = 1,
    gpus: float = 0,
) -> Comparison | None:
    """Run what the plan at `path` has no record of yet, and write the report; with `dry_run`, only say what would run.

    `jobs` runs at a time on this machine; or as many as a `cluster` has room for, each with so many CPUs and GPUs.

    Returns:
        The comparison as reported; None of a dry run.

    Raises:
        PlanError, RecipeError: a plan that cannot be run, or would not be fair; raised before any run starts.
        ModelError: no such model.
        RecordError: a damaged record in the plan's folder.
        KeyboardInterrupt: passed on, once the runs under way are stopped; the same call continues them.
    """
    _check_place(jobs, cluster, cpus, gpus)
    plan = load_plan(path, overrides, folder=out)
    resolved = resolve(plan, path.stem)
    check_budgets(resolved)
    check_rate_seeds(resolved)
    tasks = check_data(resolved)
    store = Store(Path(str(plan.folder)))
    store.check_folder()
    state = schedule(resolved, store.read)
    finished = {spec: store.read(spec) for spec in state.finished}
    check_same_data(finished, {name: task.hashes for name, task in tasks.items()})
    check_same_machine(finished, None if cluster else this_machine(), mixed=plan.allow_mixed_machines)
    print_preview(resolved, state, store, None if cluster else jobs, console)
    if dry_run:
        return None
    pool: Pool = ClusterPool(store, cluster, plan, cpus=cpus, gpus=gpus) if cluster else LocalPool(store, jobs)
    try:
        execute(resolved, store, pool, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command continues where this one was")
        raise
    return report(store.folder, console)


def _check_place(jobs: int, cluster: str | None, cpus: float, gpus: float) -> None:
    """No option is ignored without a word."""
    if cluster and jobs != 1:
        raise PlanError("--jobs", "a cluster runs as many at a time as it has room for; leave out this or --cluster")
    if not cluster and (cpus, gpus) != (1, 0):
        raise PlanError("--cpus, --gpus", "say what each run takes of a cluster; give --cluster, or leave them out")


def report(folder: Path, console: Console) -> Comparison:
    """Write a comparison's report from its records alone, collect these in one file, and print the short form.

    Raises:
        PlanError, RecordError: the folder holds no comparison, or damaged records.
    """
    comparison = write_report(folder)
    collect(folder)
    print_comparison(comparison, console)
    say(console, f"page: {folder / 'index.html'}")
    return comparison


def folder_of(path: Path, overrides: Sequence[str] = (), out: Path | None = None) -> Path:
    """Where the records of the plan at `path` are; a folder of records is its own.

    Raises:
        PlanError, RecipeError: no plan.
    """
    if path.is_dir():
        return path
    return out or Path(str(load_plan(path, overrides).folder))
