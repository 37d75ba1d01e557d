"""A backward pass through one linear layer whose weight requires grad: what signals are held against."""

from __future__ import annotations

import torch
from torch import Tensor

M, N, T = 30, 20, 50


def pass_of(seed: int, m: int = M, n: int = N, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(x, g, G) of a linear layer, with G from autograd on a real weight; `rank` limits the rank of G."""
    generator = torch.Generator().manual_seed(seed)
    tokens = rank or T
    x = torch.randn(tokens, n, generator=generator, dtype=torch.float64)
    weight = torch.randn(m, n, generator=generator, dtype=torch.float64, requires_grad=True)
    y = x @ weight.T
    y.retain_grad()
    (torch.tanh(y) * torch.randn(tokens, m, generator=generator, dtype=torch.float64)).sum().backward()
    assert y.grad is not None
    assert weight.grad is not None
    return x, y.grad, weight.grad
