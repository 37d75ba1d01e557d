"""What final runs measured on test data, and how far two methods are apart that have the same seeds and items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from localora.lab.compare.statistics.paired import Difference, difference, floor_of_answers, pooled_spread
from localora.lab.compare.store import Outcome
from localora.lab.training.record import Evaluation, Items

LOSS = "test loss"


@dataclass(frozen=True)
class Measure:
    """Something measured."""

    name: str
    value: float
    items: tuple[float, ...] | None  # per test item, in a fixed order; their mean is `value`. None: not known
    higher_is_better: bool
    weights: tuple[float, ...] | None = None  # of a loss a token, each item's tokens over the mean number of them
    watched: bool = False  # of a task that is not trained on: the value is a change, after minus before


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


BySeed = Mapping[int, Measure]


def paired_difference(
    found: Mapping[str, BySeed], label: str, base: str, confidence: float
) -> tuple[Difference, int | None] | None:
    """`label` minus `base` over the seeds both have, and the number of items; None where fewer than two seeds.

    The number of items is None where one of the two has none in its records: only seeds are then a sample. What seeds
    do is pooled over all methods of the table that have the same seeds and items.
    """
    ours, theirs = found.get(label, {}), found.get(base, {})
    seeds = [seed for seed in ours if seed in theirs]
    if len(seeds) < 2:
        return None
    sizes = {name: _items(by_seed, seeds) for name, by_seed in found.items() if all(s in by_seed for s in seeds)}
    N = sizes[label] if sizes[label] == sizes[base] else None
    group = {name: _values(found[name], seeds, N) for name, size in sizes.items() if N is None or size == N}
    floor = floor_of_answers(N) if N is not None and ours[seeds[0]].higher_is_better else 0.0
    spread = pooled_spread(np.stack(list(group.values())))
    return difference(group[label] - group[base], spread, confidence, floor), N


def mcnemar_by_seed(ours: BySeed, theirs: BySeed) -> tuple[float, ...]:
    """The exact p of each seed whose items both have."""
    pairs = [(ours[seed].items, theirs[seed].items) for seed in ours if seed in theirs]
    return tuple(mcnemar([x > 0 for x in a], [x > 0 for x in b]) for a, b in pairs if a is not None and b is not None)


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Exact p of two methods' answers to the same questions: what both got right, or both wrong, says nothing."""
    pairs = list(zip(ours, theirs, strict=True))
    alone = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return float(binomtest(alone[0], sum(alone), 0.5).pvalue) if any(alone) else 1.0


def _items(by_seed: BySeed, seeds: Sequence[int]) -> int | None:
    """How many items every one of these runs has, two or more; else None."""
    items = [by_seed[seed].items for seed in seeds]
    sizes = {len(values) if values is not None else 0 for values in items}
    size = sizes.pop() if len(sizes) == 1 else 0
    return size if size > 1 else None


def _values(by_seed: BySeed, seeds: Sequence[int], N: int | None) -> np.ndarray:
    """(S, N), whose mean is the method's; (S, 1) without items.

    An item of a loss a token counts by its tokens. The loss is then a ratio, sum of nats over sum of tokens, and its
    items are linearised about it: an item that is merely longer is not taken for one that is harder (Cochran 1977,
    Sampling Techniques, 6.4).
    """
    if N is None:
        return np.array([[by_seed[seed].value] for seed in seeds])
    values = np.array([by_seed[seed].items for seed in seeds], dtype=float)
    weights = by_seed[seeds[0]].weights
    return values if weights is None else values - values.mean() * (np.array(weights) - 1)
