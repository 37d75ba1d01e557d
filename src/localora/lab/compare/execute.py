"""Runs what is due until nothing is, whatever happens to single runs."""

from __future__ import annotations

from rich.console import Console

from localora.files import make_folder
from localora.lab.compare.plan import ResolvedPlan
from localora.lab.compare.run_one import DIVERGED_EXIT
from localora.lab.compare.runs import RunSpec, job_text
from localora.lab.compare.same_machine import check_same_machine
from localora.lab.compare.schedule import Schedule, schedule, seconds_left
from localora.lab.compare.store import Store
from localora.lab.compare.workers.local import Done, Pool
from localora.lab.progress import Reporter, duration_text
from localora.lab.training.lock import check_there, locked
from localora.lab.training.record import Evaluation, RunRecord

WAIT_SECONDS = 1.0


def execute(resolved: ResolvedPlan, store: Store, pool: Pool, console: Console) -> Schedule:
    """Run every due run once, those that become due on the way too, and close `pool`. Failed runs are noted and passed
    over.

    Returns:
        The state at the end.

    Raises:
        FolderError: another process works in the folder, or it was removed meanwhile.
        PlanError: it holds records of another plan, or a run was made on another kind of machine than those before it.
        StorageError: the disk is full or cannot be written.
    """
    try:
        make_folder(store.folder)
        with locked(store.folder):
            schedule(resolved, store.read)  # refuses records of another plan, before that plan is replaced
            store.save_plan(resolved, results=store.finished_finals())
            return _loop(resolved, store, pool, console)
    finally:
        pool.close()


def _loop(resolved: ResolvedPlan, store: Store, pool: Pool, console: Console) -> Schedule:
    tried: set[RunSpec] = set()
    running: set[RunSpec] = set()
    reporter = Reporter(console)
    with reporter.phase("runs", "run", brief=True) as phase:
        while True:
            state = schedule(resolved, store.read)
            for spec in state.due:
                if spec not in tried and len(running) < pool.slots:
                    pool.submit(spec, job_text(spec, _before(state, store, spec), _watched_before(state, store, spec)))
                    tried.add(spec)
                    running.add(spec)
            names = ", ".join(sorted(f"{s.task} {s.label}" for s in running)[:2])
            phase.left = seconds_left(state, store.read, slots=min(pool.slots, max(1, len(running))))
            phase.tell(len(state.finished) + len(state.diverged), state.total, names)
            if not running:
                return state
            over = pool.wait(WAIT_SECONDS)
            check_there(store.folder)  # or it would be made anew
            for done in over:
                running.remove(done.spec)
                _note(done, store, reporter)
                # At once, not with the report: on a cluster the next runs may go to the same odd node.
                finished = {spec: store.read(spec) for spec in (*state.finished, done.spec)}
                check_same_machine(finished, mixed=resolved.plan.allow_mixed_machines)


def _note(done: Done, store: Store, reporter: Reporter) -> None:
    outcome = store.read(done.spec)
    if outcome.status == "finished" and outcome.record is not None:
        seconds = duration_text(sum(outcome.record.seconds.values()))
        reporter.say(f"{done.spec.folder}: {_loss(done.spec, outcome.record)}, {seconds}")
        return
    diverged = done.code == DIVERGED_EXIT
    error = done.error if done.code else "ended without a finished record"
    failure = store.fail(done.spec, error, diverged)
    said = "diverged" if diverged else f"FAILED (try {failure.attempts})"
    reporter.say(f"{done.spec.folder}: {said}: {failure.reason}")


def _loss(spec: RunSpec, record: RunRecord) -> str:
    """What the run is for: a rate is chosen on validation, a final run is reported on test."""
    if spec.stage == "sweep":
        return f"validation loss {record.curve.held_out[-1].loss:.3f}"
    return f"test loss {record.after.loss:.3f}" if record.after else ""


def _before(state: Schedule, store: Store, spec: RunSpec) -> Evaluation | None:
    """The untrained model's evaluation, which is the same for all final runs of a task."""
    if spec.stage != "final":
        return None
    for other in state.finished:
        if other.stage == "final" and other.task == spec.task and (record := store.read(other).record):
            return record.before
    return None


def _watched_before(state: Schedule, store: Store, spec: RunSpec) -> dict[str, Evaluation]:
    """The untrained model's evaluation of the watched tasks, whatever it was then trained on."""
    if spec.watch:
        for other in state.finished:
            if other.stage == "final" and (watched := store.read(other).watched):
                return watched.before
    return {}
