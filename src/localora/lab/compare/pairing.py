"""What two methods measured with the same seeds on the same items, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest

from localora.lab.compare.measures import Measure
from localora.lab.compare.statistics.paired import Difference, difference, floor_of_answers, pooled_spread

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
