"""What CPS-LoRA observes of a weight: a sketch of its gradient, from (x, g) pairs of backward passes.

Shape legend
    T   tokens of a batch          m, n   rows and columns of W
    x   (T, n) inputs              g      (T, m) gradient of the loss by the layer's output
    G   (m, n) = sum_t g_t x_t^T   the batch gradient dL/dW
    s   sketch width               Omega  (n, s), Psi (2s+1, m): seeded Gaussian projections

The base weight never requires grad and G is never formed. What stays in memory is O(m + n).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from localora.placement.threads import one_thread

Projection = tuple[int, int, int]  # rows, columns and seed of a Gaussian matrix


class GradientSketch:
    """Y = G Omega `(m, s)` and Z = Psi G `(2s+1, n)`, with G summed over batches and never formed.

    :meth:`factors` turns them into a low-rank G ~ left @ right (Tropp et al., Practical sketching algorithms for
    low-rank matrix approximation, SIAM J. Matrix Anal. Appl. 2017, https://doi.org/10.1137/17M1111590): left = orth(Y)
    and right = pinv(Psi left) Z. It is exact when the rank of G is at most s.
    """

    def __init__(self, m: int, n: int, width: int, seed: int) -> None:
        self.width = min(width, m, n)
        self.omega: Projection = (n, self.width, 2 * seed)
        self.psi: Projection = (2 * self.width + 1, m, 2 * seed + 1)
        self.Y = torch.zeros(m, self.width, device="cpu")
        self.Z = torch.zeros(2 * self.width + 1, n, device="cpu")
        self.batches = 0

    def observe(self, x_tn: Tensor, g_tm: Tensor, W_mn: Tensor | None = None) -> None:
        """Add one batch. x `(T, n)`, g `(T, m)`; computed in float32 or wider. W is not needed."""
        x, g = _wide(x_tn), _wide(g_tm)
        self.Y = self.Y + (g.T @ (x @ _as(self.omega, x))).cpu()
        self.Z = self.Z + ((_as(self.psi, g) @ g.T) @ x).cpu()
        self.batches += 1

    @one_thread()
    def factors(self) -> tuple[Tensor, Tensor]:
        """left `(m, s)` with orthonormal columns and right `(s, n)`, float64 on the CPU."""
        left, _ = torch.linalg.qr(self.Y.double())
        # Psi left has full rank, so its QR will do; torch's lstsq takes all n right-hand sides along, 30 times slower.
        Q, R = torch.linalg.qr(gaussian(*self.psi) @ left)
        right = torch.linalg.solve_triangular(R, Q.T @ self.Z.double(), upper=True)
        return left, right

    def tensors(self) -> list[Tensor]:
        """What is summed over the processes of a distributed run."""
        return [self.Y, self.Z]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _as(key: Projection, like: Tensor) -> Tensor:
    # On an accelerator the copy is kept: sending it there for every layer would cost more than its product.
    return gaussian(*key).to(like) if like.device.type == "cpu" else _gaussian_on(*key, like.device, like.dtype)


@lru_cache(maxsize=16)
def _gaussian_on(rows: int, cols: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return gaussian(rows, cols, seed).to(device, dtype)


@lru_cache(maxsize=16)  # layers of equal shape share their projections; a model has few shapes
def gaussian(rows: int, cols: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator, dtype=torch.float64, device="cpu") / math.sqrt(cols)
