"""How long runs will take, from the records of those that are finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

from localora.lab.compare.runs import RunSpec
from localora.lab.compare.schedule import Read, Schedule
from localora.lab.training.record import RunRecord

ALONE = ("load", "before", "attach", "after", "save", "published", "watched")  # stages beside training

Finished = Sequence[tuple[RunSpec, RunRecord]]


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
