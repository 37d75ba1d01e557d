"""What a final run measured on test data: loss, score, published tasks, and what changed in tasks that are watched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from localora.lab.compare.store import Outcome
from localora.lab.training.record import Evaluation, Items

LOSS = "test loss"


@dataclass(frozen=True)
class Measure:
    """Something measured.

    Attributes:
        items: its values per test item, in a fixed order, whose mean is `value`; None where only that is known.
        weights: of a loss a token, each item's tokens over the mean number of them.
        watched: of a task that is not trained on: the value is a change, after minus before.
    """

    name: str
    value: float
    items: tuple[float, ...] | None
    higher_is_better: bool
    weights: tuple[float, ...] | None = None
    watched: bool = False


def measures(outcome: Outcome) -> dict[str, Measure]:
    """Everything a finished run measured, by name."""
    assert outcome.record is not None
    after = outcome.record.after
    assert after is not None  # a finished run has it
    found = list(_of(after, LOSS, after.score_name or ""))
    for task, measured in outcome.tasks.items():
        found += _of(measured, f"{task} reference loss", f"{task} {measured.score_name}")
    if outcome.watched is not None:
        for name, late in outcome.watched.after.items():
            found += _changes(name, outcome.watched.before[name], late)
    return {measure.name: measure for measure in found}


def _of(measured: Evaluation, loss: str, score: str) -> Iterator[Measure]:
    yield Measure(loss, measured.loss, _per_item(measured.items), False, _weights(measured.items))
    if measured.score is not None:
        yield Measure(score, measured.score, tuple(map(float, measured.right)), higher_is_better=True)


def change_of_loss(watched: str) -> str:
    """The name of the measure that says what a watched task lost."""
    return f"{watched}: change of loss"


def _changes(name: str, before: Evaluation, after: Evaluation) -> Iterator[Measure]:
    """Of a watched task: to the worse where the loss grows, and where the score falls."""
    late, early = _per_item(after.items), _per_item(before.items)
    items = None if late is None or early is None else tuple(a - b for a, b in zip(late, early, strict=True))
    value = after.loss - before.loss
    yield Measure(change_of_loss(name), value, items, False, _weights(after.items), watched=True)
    if after.score is not None and before.score is not None:
        changed = tuple(float(a) - float(b) for a, b in zip(after.right, before.right, strict=True))
        yield Measure(f"{name}: change of {after.score_name}", after.score - before.score, changed, True, watched=True)


def _per_item(items: Items | None) -> tuple[float, ...] | None:
    """Each item's nats over the mean number of tokens, so that their mean is the loss a token."""
    if items is None:
        return None
    mean_tokens = sum(items.tokens) / len(items.tokens)
    return tuple(nats / mean_tokens for nats in items.loss_sums)


def _weights(items: Items | None) -> tuple[float, ...] | None:
    if items is None:
        return None
    mean_tokens = sum(items.tokens) / len(items.tokens)
    return tuple(tokens / mean_tokens for tokens in items.tokens)
