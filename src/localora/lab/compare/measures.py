"""What a final run measured on test data: loss, task score, and published tasks where the plan asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from localora.lab.compare.store import Outcome
from localora.lab.training.record import Items

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
    found = [Measure(LOSS, after.loss, _per_item(after.items), higher_is_better=False)]
    if after.score is not None and after.score_name is not None:
        found.append(Measure(after.score_name, after.score, tuple(map(float, after.right)), higher_is_better=True))
    for task in outcome.tasks:
        if task.value is not None:
            found.append(Measure(f"{task.task} {task.metric}", task.value, tuple(map(float, task.right)), True))
        losses = _per_item(task.items) or tuple(task.losses)
        found.append(Measure(f"{task.task} reference loss", task.loss, losses, higher_is_better=False))
    return {measure.name: measure for measure in found}


def _per_item(items: Items | None) -> tuple[float, ...] | None:
    """Each item's nats over the mean number of tokens, so that their mean is the loss a token."""
    if items is None:
        return None
    mean_tokens = sum(items.tokens) / len(items.tokens)
    return tuple(nats / mean_tokens for nats in items.loss_sums)
