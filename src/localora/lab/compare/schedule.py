"""What is left to run, a pure function of plan and folder, so that a killed comparison just continues; and how long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean

from localora.lab.compare.learning_rates import DIVERGED, Choice, choose_rate
from localora.lab.compare.plan import Entry, ResolvedPlan
from localora.lab.compare.runs import RunSpec, final_run, sweep_runs
from localora.lab.compare.store import MAX_ATTEMPTS, Outcome
from localora.lab.training.record import RunRecord

ALONE = ("load", "before", "attach", "after", "save", "published", "watched")  # stages beside training

Read = Callable[[RunSpec], Outcome]
Finished = Sequence[tuple[RunSpec, RunRecord]]


@dataclass
class Schedule:
    """The state of a comparison, by (task, label) where it is of a method."""

    due: list[RunSpec] = field(default_factory=list)  # can start now
    finished: list[RunSpec] = field(default_factory=list)
    diverged: list[RunSpec] = field(default_factory=list)
    failed: list[RunSpec] = field(default_factory=list)  # those that are tried again are in `due` as well
    later: dict[tuple[str, str], int] = field(default_factory=dict)  # runs once rates are chosen; widening may add some
    choices: dict[tuple[str, str], Choice] = field(default_factory=dict)

    @property
    def total(self) -> int:
        retried = [spec for spec in self.failed if spec in self.due]
        over = len(self.finished) + len(self.diverged) + len(self.failed) - len(retried)
        return over + len(self.due) + sum(self.later.values())


def schedule(resolved: ResolvedPlan, read: Read, retry_failed: bool = True) -> Schedule:
    """Look at every run the plan has need of by now. With `retry_failed`, failed ones are due while tries are left."""
    state = Schedule()
    for task in resolved.plan.tasks:
        for entry in resolved.entries:
            choice = _sweep(resolved, task, entry, read, state, retry_failed)
            if choice is not None and choice.rate is not None:
                for seed in resolved.plan.seeds:
                    _note(final_run(resolved, task, entry, choice.rate, seed), read, state, retry_failed)
    return state


def _sweep(
    resolved: ResolvedPlan, task: str, entry: Entry, read: Read, state: Schedule, retry_failed: bool
) -> Choice | None:
    seen: dict[float, list[RunSpec]] = {}

    def loss(rate: float) -> float | None:
        """Mean over the seeds; one that diverged is enough to pass a rate over."""
        specs = seen.setdefault(rate, sweep_runs(resolved, task, entry, rate))
        losses = [validation_loss(read(spec)) for spec in specs]
        return None if None in losses else mean(loss for loss in losses if loss is not None)

    result = choose_rate(entry.grid, resolved.plan.learning_rates.widen, loss)
    for specs in seen.values():
        for spec in specs:
            _note(spec, read, state, retry_failed)
    if isinstance(result, Choice):
        state.choices[task, entry.label] = result
        return result
    state.later[task, entry.label] = len(resolved.plan.seeds)
    return None


def validation_loss(outcome: Outcome) -> float | None:
    """By which a rate is chosen; None where it is not known."""
    if outcome.status == "diverged":
        return DIVERGED
    return outcome.record.curve.held_out[-1].loss if outcome.status == "finished" and outcome.record else None


def _note(spec: RunSpec, read: Read, state: Schedule, retry_failed: bool) -> None:
    outcome = read(spec)
    if outcome.status == "finished":
        state.finished.append(spec)
    elif outcome.status == "diverged":
        state.diverged.append(spec)
    elif outcome.status == "missing":
        state.due.append(spec)
    else:
        state.failed.append(spec)
        if retry_failed and outcome.failure is not None and outcome.failure.attempts < MAX_ATTEMPTS:
            state.due.append(spec)


def seconds_of(task: str, label: str, stage: str, finished: Finished) -> float | None:
    """Expected seconds of a run, from those `finished` that are nearest to it; None without any."""
    train = [(spec, record.seconds.get("train", 0.0)) for spec, record in finished]
    alone = [(spec, sum(record.seconds.get(name, 0.0) for name in ALONE)) for spec, record in finished]
    if not finished:
        return None
    return _nearest(train, lambda spec: (spec.label == label, spec.task == task)) + _nearest(
        alone, lambda spec: (spec.stage == stage, spec.task == task)
    )


def _nearest(values: list[tuple[RunSpec, float]], nearness: Callable[[RunSpec], tuple[bool, bool]]) -> float:
    best = max(nearness(spec) for spec, _ in values)
    return mean(value for spec, value in values if nearness(spec) == best)


def seconds_left(state: Schedule, read: Read, slots: int = 1) -> float | None:
    """Seconds until all that is foreseen is done, `slots` runs at a time; None without any finished run."""
    outcomes = [(spec, read(spec).record) for spec in state.finished]
    finished = [(spec, record) for spec, record in outcomes if record is not None]
    wanted = [(spec.task, spec.label, spec.stage, 1) for spec in state.due]
    wanted += [(task, label, "final", runs) for (task, label), runs in state.later.items()]
    parts = [(seconds_of(task, label, stage, finished), runs) for task, label, stage, runs in wanted]
    known = [each * runs for each, runs in parts if each is not None]
    return None if len(known) < len(parts) else sum(known) / max(1, slots)
