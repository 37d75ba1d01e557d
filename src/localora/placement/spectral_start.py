"""Where the co-clustering planner starts: a spectral cut of rows and columns together.

Shape legend
    m, n  rows and columns of M      q  directions of its thin SVD M = U diag(s) V^T      K  clusters
    a, b  rows and columns in the sample that the spectral start looks at

Everything is float64 on the CPU; random choices come from the generator the caller hands in.
"""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLE = 768  # rows and columns the spectral start looks at: a constant, so its dense a x b graph is one too
SAMPLE_PER_CLUSTER = 16
SUBSPACE_ITERATIONS = 12
KMEANS_RESTARTS, KMEANS_ITERATIONS = 5, 25


def spectral_start(
    U: Tensor, s: Tensor, V: Tensor, clusters: int, power: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """First labels of rows `(m,)` and columns `(n,)`: a sample gets labels 0..K-1, the rest -1.

    Cuts the bipartite graph with edge weights E = (U diag(s)^power V^T)^2, entrywise: the leading K singular vectors
    of D_r^-1/2 E D_c^-1/2, rows and columns clustered together by k-means (Dhillon, KDD 2001; each point on the unit
    sphere as in Ng, Jordan and Weiss, 2001). With power 1 the edges are the energies of M. With power 0 each singular
    direction counts alike: U V^T is block-diagonal for planted clusters too, and weak clusters show as much as strong
    ones, which energies hide.

    Only a sample of rows and columns is embedded. A factored product with all of E costs (m + n) q^2 a vector, which
    at q = 64 is more than all the alternation after it; the alternation labels the rest in its first round anyway.

    References:
        I. S. Dhillon, Co-clustering documents and words using bipartite spectral graph partitioning, 2001.
        https://doi.org/10.1145/502512.502550
    """
    scale = s**power
    rows = _sample((U * scale).square().sum(1), clusters, generator)
    cols = _sample((V * scale).square().sum(1), clusters, generator)
    E = ((U[rows] * scale) @ V[cols].T).square()
    row_degree, col_degree = (E.sum(dim).clamp(min=torch.finfo(E.dtype).tiny).rsqrt() for dim in (1, 0))
    E = E * row_degree[:, None] * col_degree
    left, right = _leading_singular_vectors(E, clusters, generator)
    points = torch.nn.functional.normalize(torch.cat([left, right]), dim=1)
    labels = kmeans(points, clusters, generator)
    row_labels, col_labels = torch.full((len(U),), -1), torch.full((len(V),), -1)
    row_labels[rows], col_labels[cols] = labels[: len(rows)], labels[len(rows) :]
    return row_labels, col_labels


def _sample(energy: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Indices of all elements if they are few, else of a sample: half by energy, half alike for every element."""
    size = max(SAMPLE, SAMPLE_PER_CLUSTER * clusters)
    if len(energy) <= size:
        return torch.arange(len(energy))
    chance = energy / energy.sum() + 1 / len(energy)
    return torch.multinomial(chance, size, generator=generator).sort().values


def _leading_singular_vectors(E: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`(a, count)` and `(b, count)`, by subspace iteration; fewer columns when E has fewer."""
    width = min(count + 8, *E.shape)
    right = torch.randn(E.shape[1], width, generator=generator, dtype=E.dtype)
    for _ in range(SUBSPACE_ITERATIONS):
        right = torch.linalg.qr(E.T @ (E @ right)).Q
    left, _, rotation = torch.linalg.svd(E @ right, full_matrices=False)
    return left[:, :count], (right @ rotation.T)[:, :count]


def kmeans(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Labels `(N,)` of points `(N, d)`: Lloyd's algorithm from k-means++ seeds, the best of a few restarts."""
    best, best_cost = torch.zeros(len(points), dtype=torch.int64), float("inf")
    square = points.square().sum(1)

    def distances(centres: Tensor) -> Tensor:
        return (square[:, None] - 2 * points @ centres.T + centres.square().sum(1)).clamp(min=0)

    for _ in range(KMEANS_RESTARTS):
        chosen = torch.randint(len(points), (1,), generator=generator)
        nearest = distances(points[chosen])[:, 0]
        while len(chosen) < clusters:
            # the floor keeps the draw defined when every point already coincides with a seed
            seed = torch.multinomial(nearest.clamp(min=1e-300), 1, generator=generator)
            chosen = torch.cat([chosen, seed])
            nearest = torch.minimum(nearest, distances(points[seed])[:, 0])
        centres, labels = points[chosen], torch.full((len(points),), -1)
        for _ in range(KMEANS_ITERATIONS):
            cost, updated = distances(centres).min(1)
            if torch.equal(updated, labels):
                break
            labels = updated
            sums = torch.zeros_like(centres).index_add_(0, labels, points)
            counts = torch.bincount(labels, minlength=clusters)[:, None]
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        if cost.sum() < best_cost:
            best, best_cost = labels, float(cost.sum())
    return best
