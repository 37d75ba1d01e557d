"""What a final run measured on test data: loss, task score, and published tasks where the plan asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from localora.lab.compare.store import Outcome

LOSS = "test loss"


@dataclass(frozen=True)
class Measure:
    """Something measured. `items` are its values per test item, in a fixed order; None where only the mean is known."""

    name: str
    value: float
    items: tuple[float, ...] | None
    higher_is_better: bool


def measures(outcome: Outcome) -> dict[str, Measure]:
    """Everything a finished run measured, by name."""
    assert outcome.record is not None
    after = outcome.record.after
    assert after is not None  # a finished run has it
    found = [Measure(LOSS, after.loss, None, higher_is_better=False)]
    if after.score is not None and after.score_name is not None:
        found.append(Measure(after.score_name, after.score, tuple(map(float, after.right)), higher_is_better=True))
    for task in outcome.tasks:
        if task.value is not None:
            found.append(Measure(f"{task.task} {task.metric}", task.value, tuple(map(float, task.right)), True))
        found.append(Measure(f"{task.task} reference loss", task.loss, tuple(task.losses), higher_is_better=False))
    return {measure.name: measure for measure in found}
