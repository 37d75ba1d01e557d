"""How often a comparison errs, and what it finds: `python -m benchmarks.verdicts [--trials 1000]`.

Tables are simulated in which eight methods do as the baseline does, and ones in which the first is 0.05 nats better.
Each method trains a little differently with each seed and has test items that suit it. Two ways to judge are compared:
Student's paired t-test of a run's mean loss, pair by pair, for which items count as fixed; and that of a comparison's
report. Both are corrected by Holm's method over the eight. Family-wise error is the share of tables of equal methods in
which any is said to differ; it should be 0.05 at most.

    sd by seed   0.019 is what commonsense has in results/first-numbers, 0.046 small-model; "unequal": its logarithm
                 differs by 0.5 between methods, as it does in small-model
    sd by item   a method's own. In small-model items differ by 0.23 nats a token among themselves (taken from records
                 that hold them: five runs of LoRA), and from seed to seed by another 0.05
"""

from __future__ import annotations

import argparse
from itertools import product

import numpy as np
from scipy import stats

from localora.lab.compare.statistics.paired import difference, pooled_spread
from localora.lab.compare.statistics.verdict import holm

METHODS, ITEMS, EFFECT, LEVEL = 9, 200, 0.05, 0.05


def simulate(random: np.random.Generator, S: int, by_seed: float, unequal: bool, by_item: float) -> np.ndarray:
    """(METHODS, S, ITEMS) of equal methods."""
    G, N = METHODS, ITEMS
    steady = np.exp(random.normal(0, 0.5 if unequal else 0.0, (G, 1, 1)))
    steady /= np.sqrt((steady**2).mean())
    y = random.normal(0, 0.05, (1, S, 1)) + random.normal(0, 0.23, (1, 1, N))
    y = y + by_seed * steady * random.normal(0, 1, (G, S, 1)) + random.normal(0, by_item, (G, 1, N))
    return y + random.normal(0, 0.05, (G, S, N))


def fixed_items(y: np.ndarray) -> list[float]:
    """p, corrected, of each method: pair by pair, from the runs' means."""
    return holm([float(stats.ttest_1samp((row - y[0]).mean(axis=1), 0).pvalue) for row in y[1:]])


def reported(y: np.ndarray) -> list[float]:
    """p, corrected, of each method, as a report judges them."""
    spread = pooled_spread(y)
    return holm([difference(row - y[0], spread, 1 - LEVEL).p for row in y[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print(
        "| sd by seed | sd by item | seeds | error, items fixed | error, report | power, items fixed | power, report |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    cases = product(((0.019, False), (0.046, False), (0.046, True)), (0.0, 0.1, 0.2), (3, 6))
    for (by_seed, unequal), by_item, S in cases:
        random, counts = np.random.default_rng(0), np.zeros(4)
        for _ in range(trials):
            y = simulate(random, S, by_seed, unequal, by_item)
            better = y.copy()
            better[1] -= EFFECT
            counts += [
                min(fixed_items(y)) < LEVEL,
                min(reported(y)) < LEVEL,
                fixed_items(better)[0] < LEVEL,
                reported(better)[0] < LEVEL,
            ]
        shares = " | ".join(f"{share:.3f}" for share in counts / trials)
        print(f"| {by_seed}{', unequal' if unequal else ''} | {by_item} | {S} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
