"""All figures of one layer's dW.

Shape legend
    m, n  rows and columns of dW        r  budgeted rank        K  clusters
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from localora.lab.inspect import InspectionError
from localora.lab.inspect.captured import global_local_energy, grid_energy, lora_energy, partition_energy
from localora.lab.inspect.cluster_test import BALANCES, ClusterTest, cluster_test
from localora.lab.inspect.matrix import Matrix, effective_rank, stable_rank
from localora.lab.inspect.thumbnails import Thumbnails, draw_thumbnails
from localora.placement.budget import LocalShape
from localora.placement.coclustering import CoclusteringResult, plan_coclusters
from localora.placement.random import contiguous_partition

PLAN_DIRECTIONS = 128  # at most, since the planner's work grows with their cube


@dataclass(frozen=True)
class LayerInspection:
    """The figures of one layer; `docs/inspect.md` says what each means. Partitions are called `k4_free`, ..."""

    name: str  # in the base model
    rows: int  # m
    cols: int  # n
    norm: float  # ||dW||_F
    singular_values: tuple[float, ...]  # all of them (of factors, those above rounding), descending
    stable_rank: float
    effective_rank: float
    rank_utilisation: float  # effective rank over r; above 1, dW uses more directions than LoRA has
    captured: dict[str, float | None]  # adapter at LoRA's budget -> share of ||dW||_F^2; None: does not fit the shape
    correlation: dict[str, float | None]  # overlap of the clusters' subspaces: 0 = orthogonal, 1 = one subspace
    cluster_sizes: dict[str, list[tuple[int, int]]]  # rows x columns of each cluster
    test: ClusterTest  # whether there are clusters
    thumbnails: Thumbnails | None = field(default=None, repr=False, compare=False)


def inspect_layer(
    name: str, matrix: Matrix, *, rank: int, clusters: tuple[int, ...], draws: int, seed: int
) -> LayerInspection:
    """Put one dW under the microscope.

    Raises:
        InspectionError: dW holds NaN or infinity.
    """
    m, n = matrix.shape
    energy = matrix.energy()
    if not math.isfinite(energy):
        raise InspectionError(f"the update of {name} holds NaN or infinity; the training that made it diverged")
    s = matrix.singular_values()
    plans = _plans(matrix, rank, clusters, seed) if energy > 0 else {}
    test = cluster_test(matrix, rank=rank, clusters=clusters, draws=draws, seed=seed)
    effective = effective_rank(s)
    return LayerInspection(
        name=name,
        rows=m,
        cols=n,
        norm=math.sqrt(energy),
        singular_values=tuple(s.tolist()),
        stable_rank=stable_rank(s),
        effective_rank=effective,
        rank_utilisation=effective / rank,
        captured=_captured(matrix, rank, clusters, plans) if energy > 0 else {},
        correlation={key: plan.subspace_correlation for key, plan in plans.items()},
        cluster_sizes={
            key: list(zip(plan.partition.row_sizes, plan.partition.col_sizes, strict=True))
            for key, plan in plans.items()
        },
        test=test,
        thumbnails=draw_thumbnails(matrix.dense(), plans[_pictured(test, plans)].partition) if plans else None,
    )


def _plans(matrix: Matrix, rank: int, clusters: tuple[int, ...], seed: int) -> dict[str, CoclusteringResult]:
    """Partitions planned on the leading K r directions, which are all that K clusters of rank r can hold."""
    m, n = matrix.shape
    fitting = [K for K in clusters if min(m, n) >= K]
    if not fitting:
        return {}
    U, s, V = matrix.leading(min(max(fitting) * rank, PLAN_DIRECTIONS))
    return {
        f"k{K}_{sizes}": plan_coclusters(
            U[:, : K * rank] * s[: K * rank], V[:, : K * rank].T, clusters=K, rank=rank, balance=balance, seed=seed
        )
        for K in fitting
        for sizes, balance in BALANCES.items()
    }


def _captured(
    matrix: Matrix, rank: int, clusters: tuple[int, ...], plans: dict[str, CoclusteringResult]
) -> dict[str, float | None]:
    m, n = matrix.shape
    captured = {"lora": lora_energy(matrix, rank), "g_lora": global_local_energy(matrix, rank)}
    for K in clusters:
        fits = min(m, n) >= K
        for sizes in BALANCES:
            key = f"k{K}_{sizes}"
            captured[f"cps_{key}"] = partition_energy(matrix, plans[key].partition, rank) if fits else None
        contiguous = contiguous_partition(m, n, LocalShape(K, rank, m, n)) if fits else None
        captured[f"contiguous_k{K}"] = partition_energy(matrix, contiguous, rank) if contiguous else None
        captured[f"grid_k{K}"] = grid_energy(matrix, K, rank) if fits else None
    return captured


def _pictured(test: ClusterTest, plans: dict[str, CoclusteringResult]) -> str:
    """The plan whose order a picture shows: the strongest one, or the first where none can be told."""
    return test.strongest or next(iter(plans))
