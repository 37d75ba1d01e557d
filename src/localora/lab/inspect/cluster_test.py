"""Are there clusters? The planner's figures on dW beside the same figures on matrices that have none.

Shape legend
    m, n  rows and columns of dW      q  its leading directions looked at      K  clusters      r  rank of a cluster

The planner maximises captured energy, so it finds "clusters" in noise too: K equal clusters of random directions hold
1/K of the energy and whatever the search gains on top. What counts is the excess over nulls that went through the same
search. The test looks at the q leading directions of dW alone, which makes it linear in m + n: clusters that live
below them would be no use to an adapter either.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from localora.lab.inspect.captured import global_local_energy, partition_energy
from localora.lab.inspect.matrix import Factors, Matrix, Triplets
from localora.lab.inspect.nulls import energy_mismatch, matched, rotated
from localora.placement.budget import LocalShape
from localora.placement.coclustering import plan_coclusters
from localora.placement.random import contiguous_partition

DIRECTIONS = 64  # at most
NEGLIGIBLE = 1e-3  # of the largest singular value: what a merge's rounding leaves behind is no direction of dW
NULLS = ("rotated", "matched")
BALANCES = {"balanced": 1.0, "free": 0.0}
MIN_EXCESS = 0.1  # of the energy that the null leaves to be gained: less is no use, however significant
MIN_GAP = 0.03  # of all energy: a null that captures nearly everything makes large shares of small remainders
MIN_Z = 4.0
MAX_MISMATCH = 0.05  # of the energy on the wrong rows or columns, beyond which the matched null is no match
MIN_ROOM = 0.02  # where the null captures nearly all there is, nothing can be told

CLUSTERS = "clusters"  # the matched null is beaten
UNEVEN = "uneven"  # only the rotated one is: heavy rows or columns, which G-LoRA's block could use
NONE = "none"
UNDECIDED = "undecided"  # a few rows or columns hold so much energy that no draw of the matched null has the same
UNCHANGED = "unchanged"  # dW = 0


@dataclass(frozen=True)
class NullFigure:
    """One figure of dW beside its draws under one null."""

    observed: float  # on the leading directions of dW
    mean: float  # of the draws
    sd: float  # likewise, with n - 1
    z: float | None  # (observed - mean) / sd; None where the draws do not vary
    excess: float | None  # see :func:`excess`
    above_all: bool  # dW beats every draw

    @property
    def beaten(self) -> bool:
        """Whether dW beats the null by enough to matter, and beyond the draws' scatter."""
        by_enough = self.excess is not None and self.excess >= MIN_EXCESS and self.observed - self.mean >= MIN_GAP
        return by_enough and self.above_all and (self.z is None or self.z >= MIN_Z)


@dataclass(frozen=True)
class ClusterTest:
    """The verdict on one layer and what it rests on. Captured energies are shares of all of dW's energy.

    `strongest` is the partition that is judged, such as "k4_balanced": of all, it has the largest excess over a first
    draw of the matched null, which is then not used again.
    """

    verdict: str
    strongest: str | None = None
    excess: float | None = None  # of its captured energy over the matched null
    directions: int = 0  # q
    ceiling: float = 0.0  # the share of dW's energy in those directions, the most any figure here can reach
    mismatch: float = 0.0  # the worst draw of the matched null: its share of energy on other rows or columns than in dW
    observed: dict[str, float] = field(default_factory=dict)  # all figures of dW
    first_draw: dict[str, float] = field(default_factory=dict)  # likewise
    nulls: dict[str, dict[str, NullFigure]] = field(default_factory=dict)  # null -> figure -> of dW and of its draws


def cluster_test(matrix: Matrix, *, rank: int, clusters: tuple[int, ...], draws: int, seed: int) -> ClusterTest:
    """Compare dW with `draws` draws of each null (see :mod:`localora.lab.inspect.nulls`).

    The first draw of the matched null chooses the partition to judge, further ones judge it: chosen and judged on the
    same draws, the best of many partitions would look better than it is.
    """
    energy = matrix.energy()
    if energy == 0:
        return ClusterTest(UNCHANGED)
    # a basis of nearly as many directions as rows leaves nothing to draw at random
    U, s, V = matrix.leading(min(DIRECTIONS, max(1, min(matrix.shape) // 2)))
    kept = s > NEGLIGIBLE * s[0]
    U, s, V = U[:, kept], s[kept], V[:, kept]
    ceiling = float(s.square().sum()) / energy
    generator = torch.Generator().manual_seed(seed)
    mismatches = []

    def draw(null: str) -> Triplets:
        if null == "rotated":
            return rotated(U, s, V, generator)
        drawn = matched(U, s, V, generator)
        mismatches.append(max(energy_mismatch(U, drawn[0], s), energy_mismatch(V, drawn[2], s)))
        return drawn

    every = [(K, sizes) for K in clusters if min(matrix.shape) >= K for sizes in BALANCES]
    observed = _figures((U, s, V), energy, rank, every, seed)
    first = _figures(draw("matched"), energy, rank, every, seed)
    by_excess = {}
    for K, sizes in every:
        key = f"cps_k{K}_{sizes}"
        by_excess[K, sizes] = excess(observed[key], first[key], ceiling)
    known = {partition: value for partition, value in by_excess.items() if value is not None}
    strongest = [max(known, key=lambda partition: known[partition])] if known else []

    nulls = {}
    for null in NULLS:
        samples = [_figures(draw(null), energy, rank, strongest, seed) for _ in range(draws)]
        nulls[null] = {key: _compare(observed[key], [x[key] for x in samples], ceiling) for key in samples[0]}
    name = "k{}_{}".format(*strongest[0]) if strongest else None
    return ClusterTest(
        verdict=_verdict(nulls, name, max(mismatches)),
        strongest=name,
        excess=nulls["matched"][f"cps_{name}"].excess if name else None,
        directions=len(s),
        ceiling=ceiling,
        mismatch=max(mismatches),
        observed=observed,
        first_draw=first,
        nulls=nulls,
    )


def excess(observed: float, null: float, ceiling: float) -> float | None:
    """(observed - null) / (ceiling - null): the share of what the null leaves that dW captures; 0 = chance, 1 = all.

    None where the null leaves almost nothing.
    """
    room = ceiling - null
    return (observed - null) / room if room >= MIN_ROOM else None


def _figures(
    triplets: Triplets, energy: float, rank: int, partitions: Sequence[tuple[int, str]], seed: int
) -> dict[str, float]:
    """The figures of a matrix in triplets; `energy` is that of all of dW, of which they may be a part."""
    U, s, V = triplets
    factors, share = Factors(U * s, V.T), float(s.square().sum()) / energy
    m, n = factors.shape
    figures = {"lora": float(s[:rank].square().sum()) / energy}
    g_lora = global_local_energy(factors, rank)
    if g_lora is not None:
        figures["g_lora"] = share * g_lora
    for K, sizes in partitions:
        contiguous = contiguous_partition(m, n, LocalShape(K, rank, m, n))
        figures[f"contiguous_k{K}"] = share * partition_energy(factors, contiguous, rank)
        planned = plan_coclusters(U * s, V.T, clusters=K, rank=rank, balance=BALANCES[sizes], seed=seed)
        figures[f"cps_k{K}_{sizes}"] = share * planned.captured_energy
    return figures


def _compare(observed: float, sample: list[float], ceiling: float) -> NullFigure:
    mean, sd = statistics.fmean(sample), statistics.stdev(sample)
    z = (observed - mean) / sd if sd > 1e-9 * abs(mean) else None
    return NullFigure(observed, mean, sd, z, excess(observed, mean, ceiling), observed > max(sample))


def _verdict(nulls: dict[str, dict[str, NullFigure]], strongest: str | None, mismatch: float) -> str:
    key = f"cps_{strongest}"
    if strongest and nulls["matched"][key].beaten:
        return CLUSTERS if mismatch <= MAX_MISMATCH else UNDECIDED
    rotated_null = nulls["rotated"]
    if any(rotated_null[name].beaten for name in (key, "g_lora") if name in rotated_null):
        return UNEVEN
    return NONE
