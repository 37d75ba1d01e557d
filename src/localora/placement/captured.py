"""What a partition into co-clusters holds of a matrix: the energy it captures, and how far its subspaces overlap.

Shape legend
    m, n  rows and columns of M             K  clusters
    q     directions M is given in          r  rank of one cluster's term
    U (m, q), s (q,), V (n, q)   thin SVD, M = U diag(s) V^T, scaled to ||M||_F = 1
    X = U diag(s)                so that M[i, j] = X[i] . V[j]

    captured energy = sum_k ||best rank-r approximation of M[R_k, C_k]||_F^2 / ||M||_F^2

A block is M[R_k, C_k] = X[R_k] V[C_k]^T, so the Gram matrices A_k = X[R_k]^T X[R_k] and H_k = V[C_k]^T V[C_k], q x q,
say all about its singular values. Everything is float64 on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localora.placement.partition import Partition, PlacementError
from localora.placement.thin import thin_svd
from localora.placement.threads import one_thread

TIE_BREAK = 1e-9  # of the largest energy of a cluster: what decides directions that no energy decides
EPS = torch.finfo(torch.float64).eps


@one_thread()
def captured_energy(left_mq: Tensor, right_qn: Tensor, partition: Partition, rank: int) -> float:
    """sum_k ||best rank-r approximation of M[R_k, C_k]||_F^2 / ||M||_F^2, in 0..1; 0 for an all-zero M.

    Raises:
        PlacementError: factors that do not fit, are empty or not finite, rank < 1, or a partition of another
            matrix.
    """
    check_rank(rank)
    U, s, V = unit_svd(left_mq, right_qn)
    check_shape(partition, len(U), len(V))
    return captured(U, s, V, partition, rank)


def grams(points_Nq: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """`(K, q, q)`: P^T P of each cluster's points P."""
    groups = [points_Nq[labels == k] for k in range(clusters)]
    return torch.stack([P.T @ P for P in groups])


def leading_maps(A: Tensor, H: Tensor, rank: int) -> tuple[Tensor, float]:
    """The map from a column's V[j] to its coordinates in each cluster's left subspace, and the captured energy.

    With A_k = F^T F, X[R_k] = Q F for some orthonormal Q, so M_k M_k^T = Q (F H_k F^T) Q^T: its leading eigenvectors P
    give U_k = Q P and U_k^T M[R_k, j] = P^T F V[j]. Returns W_k = P^T F, `(K, min(r, q), q)`, and the sum of the
    eigenvalues, the squared singular values. With A and H exchanged, the same for rows.

    A block of rank below r leaves directions open. They go to what all columns hold most of (the small multiple of the
    identity, V^T V over all columns): left to rounding, they would be others on every machine.
    """
    F = _square_root(A)
    weight = TIE_BREAK * H.diagonal(dim1=-2, dim2=-1).sum(-1).amax()
    _, P = torch.linalg.eigh(F @ (H + weight * torch.eye(H.shape[-1], dtype=H.dtype)) @ F.mT)
    W = P[..., -rank:].mT @ F
    return W, float(((W @ H) * W).sum())


def _square_root(A: Tensor) -> Tensor:
    """F with F^T F = A, for a batch of positive semidefinite A that may be singular (Cholesky would fail)."""
    eigenvalues, E = torch.linalg.eigh(A)
    F: Tensor = eigenvalues.clamp(min=0).sqrt()[..., None] * E.mT
    return F


def captured(U: Tensor, s: Tensor, V: Tensor, partition: Partition, rank: int) -> float:
    A = grams(U * s, partition.row_labels, partition.clusters)
    H = grams(V, partition.col_labels, partition.clusters)
    return min(1.0, leading_maps(A, H, rank)[1])


def subspace_correlation(U: Tensor, s: Tensor, V: Tensor, partition: Partition, rank: int) -> float:
    """How much the clusters' subspaces overlap: 0 = orthogonal, 1 = one subspace for all.

    With V_k the leading r right singular vectors of the row group M[R_k, :], the mean of ||V_k^T V_l||_F^2 / r over
    pairs k != l (r = the smaller of both ranks); likewise for column groups; the average of both. Empty and all-zero
    groups have no subspace and are left out; with fewer than two others a side counts as 0, so K = 1 gives 0.
    """
    # V is orthonormal, so right singular vectors of X[R_k] V^T are V times those of X[R_k]; columns likewise with U
    by_rows = _mean_overlap(grams(U * s, partition.row_labels, partition.clusters), rank)
    by_cols = _mean_overlap(grams(V * s, partition.col_labels, partition.clusters), rank)
    return (by_rows + by_cols) / 2


def _mean_overlap(grams_Kqq: Tensor, rank: int) -> float:
    """Mean over pairs of ||E_k^T E_l||_F^2 / min(rank_k, rank_l), E_k the leading eigenvectors of Gram matrix k."""
    if grams_Kqq.numel() == 0:  # M = 0
        return 0.0
    eigenvalues, E = torch.linalg.eigh(grams_Kqq)
    eigenvalues, E = eigenvalues[:, -rank:], E[..., -rank:]
    real = eigenvalues > 1e-12 * max(1e-300, float(eigenvalues.max()))  # what lies below is rounding
    ranks = real.sum(1)
    E, ranks = (E * real[:, None])[ranks > 0], ranks[ranks > 0]
    K, r = len(E), E.shape[2]
    if K < 2:
        return 0.0
    directions = E.mT.reshape(K * r, -1)
    overlap = (directions @ directions.T).square().view(K, r, K, r).sum((1, 3))
    overlap = overlap / torch.minimum(ranks[:, None], ranks)
    return float(overlap.fill_diagonal_(0).sum() / (K * (K - 1)))


def unit_svd(left_mq: Tensor, right_qn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, s, V of M = left @ right with ||s|| = 1 and numerically zero directions dropped; s is empty for M = 0."""
    if left_mq.ndim != 2 or right_qn.ndim != 2 or left_mq.shape[1] != right_qn.shape[0]:
        raise PlacementError(
            f"the factors of M must be (m, q) and (q, n), got {tuple(left_mq.shape)} and {tuple(right_qn.shape)}"
        )
    if left_mq.numel() == 0 or right_qn.numel() == 0:
        raise PlacementError(f"the factors of M are empty: {tuple(left_mq.shape)} and {tuple(right_qn.shape)}")
    scaled = []
    for name, factor in (("left", left_mq), ("right", right_qn)):
        factor = factor.detach().to("cpu", torch.float64)
        if not bool(factor.isfinite().all()):
            raise PlacementError(
                f"the {name} factor of M holds NaN or infinity, so the gradient or update it stands for has diverged: "
                "lower the learning rate, or check the calibration batches and their loss"
            )
        # entries near the ends of the float64 range would overflow or vanish when squared
        scaled.append(factor / factor.abs().max().clamp(min=torch.finfo(torch.float64).tiny))
    left, right = scaled
    U, s, Vh = thin_svd(right, left)
    rounding = EPS * max(len(left), right.shape[1], len(right))
    kept = s > max(float(s[0]), float(left.norm() * right.norm())) * rounding
    s = s[kept]
    return U[:, kept], s / s.norm(), Vh[kept].T


def check_rank(rank: int) -> None:
    if rank < 1:
        raise PlacementError(f"the rank of a cluster's term must be at least 1, got {rank}")


def check_shape(partition: Partition, m: int, n: int) -> None:
    if (partition.m, partition.n) != (m, n):
        raise PlacementError(f"the partition labels a {partition.m} x {partition.n} matrix, M is {m} x {n}")
