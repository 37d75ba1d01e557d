"""The energy of dW that each kind of adapter could hold, all at LoRA's budget r (m + n).

Shape legend
    m, n  rows and columns of dW          r  LoRA-equivalent rank        K  clusters
    R_k, C_k  rows and columns of cluster k                 r_g, r_l  global and local rank of G-LoRA

    captured energy = 1 - min ||dW - X||_F^2 / ||dW||_F^2   over the updates X the adapter can express

For LoRA, clusters and grids the minimum is a sum of leading squared singular values (Eckart and Young). For G-LoRA it
is found by alternation, so its figure is a lower bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localora.lab.inspect.matrix import Matrix
from localora.placement.budget import global_local_budget
from localora.placement.partition import Partition
from localora.placement.taylor import plan_block

GLOBAL_SHARE, LOCAL_SIZE = 0.5, 0.25  # G-LoRA's defaults
MAX_ROUNDS = 10
TOLERANCE = 1e-4  # gain of captured energy that is worth another round


def lora_energy(matrix: Matrix, rank: int) -> float:
    """Plain LoRA: the r leading singular directions."""
    return _share(matrix.top_energy(rank), matrix.energy())


def partition_energy(matrix: Matrix, partition: Partition, rank: int) -> float:
    """A rank-r term in each cluster, sum_k ||best rank-r approximation of dW[R_k, C_k]||_F^2: CPS-LoRA's budget."""
    rows, cols = partition.row_labels, partition.col_labels
    members = [(torch.nonzero(rows == k)[:, 0], torch.nonzero(cols == k)[:, 0]) for k in range(partition.clusters)]
    return _share(sum(matrix.block(*member).top_energy(rank) for member in members), matrix.energy())


def grid_energy(matrix: Matrix, pieces: int, rank: int) -> float | None:
    """A K x K grid of contiguous blocks that covers dW, rank r / K in each (GraLoRA: Jung et al., 2025).

    None where K does not divide r, since no such grid has LoRA's budget.
    """
    if rank % pieces:
        return None
    rows, cols = (torch.arange(size).tensor_split(pieces) for size in matrix.shape)
    captured = sum(matrix.block(row, col).top_energy(rank // pieces) for row in rows for col in cols)
    return _share(captured, matrix.energy())


def global_local_energy(matrix: Matrix, rank: int) -> float | None:
    """G-LoRA at its default shares: rank r_g everywhere plus rank r_l on a block.

    The block holds the rows and columns of most energy in dW. G-LoRA itself chooses by |W * gradient|; a finished
    update has no gradient at hand. Global and local term are fitted in turn, each to what the other leaves, from two
    starts; each step is the best for the other's term, so the captured energy never falls.

    None where the shape is too small for that block.
    """
    m, n = matrix.shape
    budget = global_local_budget(m, n, rank, GLOBAL_SHARE, LOCAL_SIZE)
    if budget.compromise:
        return None
    r_g, local = budget.global_rank, budget.local
    if local is None:
        return lora_energy(matrix, rank)
    block = plan_block(matrix.row_energy(), matrix.col_energy(), local.rows, local.cols)
    rows, cols = torch.nonzero(block.row_labels == 0)[:, 0], torch.nonzero(block.col_labels == 0)[:, 0]
    total = matrix.energy()
    if total == 0:
        return 0.0

    def fitted(target: Matrix, k: int) -> tuple[Tensor, Tensor]:
        U, s, V = target.leading(k)
        return U * s, V.T

    def local_term(global_term: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The local term on what the global one leaves, placed in the whole matrix."""
        residual = matrix if global_term is None else matrix.minus(*global_term)
        left, right = fitted(residual.block(rows, cols), local.rank)
        placed_left, placed_right = left.new_zeros(m, left.shape[1]), right.new_zeros(right.shape[0], n)
        placed_left[rows], placed_right[:, cols] = left, right
        return placed_left, placed_right

    best = 0.0
    for global_term in (None, fitted(matrix, r_g)):
        captured = 0.0
        for _ in range(MAX_ROUNDS):
            remainder = matrix.minus(*local_term(global_term))
            global_term = fitted(remainder, r_g)
            gained = 1 - max(0.0, remainder.energy() - float(global_term[0].square().sum())) / total
            captured, before = max(captured, gained), captured
            if captured - before <= TOLERANCE:
                break
        best = max(best, captured)
    return best


def _share(captured: float, total: float) -> float:
    return min(1.0, captured / total) if total > 0 else 0.0
