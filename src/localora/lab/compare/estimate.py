"""How long runs will take, from the records of those that are finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean

from localora.lab.compare.runs import RunSpec
from localora.lab.compare.schedule import Read, Schedule
from localora.lab.training.record import RunRecord

ALONE = ("load", "before", "attach", "after", "save", "published", "watched")  # stages that do not grow with the steps


class Timings:
    """Seconds of finished runs, looked up by how near they are to the run asked for."""

    def __init__(self, finished: Sequence[tuple[RunSpec, RunRecord]]) -> None:
        self._finished = finished

    def seconds(self, task: str, label: str, steps: int, stage: str) -> float | None:
        """Expected seconds of a run; None without any finished run."""
        per_step = self._nearest(
            [(spec, record.seconds.get("train", 0.0) / spec.steps) for spec, record in self._finished],
            lambda spec: (spec.label == label, spec.task == task),
        )
        alone = self._nearest(
            [(spec, sum(record.seconds.get(name, 0.0) for name in ALONE)) for spec, record in self._finished],
            lambda spec: (spec.stage == stage, spec.task == task),
        )
        return None if per_step is None or alone is None else per_step * steps + alone

    @staticmethod
    def _nearest(values: list[tuple[RunSpec, float]], nearness: Callable[[RunSpec], tuple[bool, bool]]) -> float | None:
        if not values:
            return None
        rank = {spec: nearness(spec) for spec, _ in values}
        best = max(rank.values())
        return mean(value for spec, value in values if rank[spec] == best)


def timings(state: Schedule, read: Read) -> Timings:
    outcomes = ((spec, read(spec).record) for spec in state.finished)
    return Timings([(spec, record) for spec, record in outcomes if record is not None])


def seconds_left(state: Schedule, times: Timings, running: Iterable[RunSpec] = (), slots: int = 1) -> float | None:
    """Seconds until all that is foreseen is done, `slots` at a time; None without any finished run."""
    due = dict.fromkeys([*state.due, *running])
    parts = [times.seconds(spec.task, spec.label, spec.steps, spec.stage) for spec in due]
    parts += [
        None if (each := times.seconds(task, label, steps, "final")) is None else each * runs
        for (task, label, steps), runs in state.later.items()
    ]
    known = [part for part in parts if part is not None]
    return None if len(known) < len(parts) else sum(known) / max(1, slots)
