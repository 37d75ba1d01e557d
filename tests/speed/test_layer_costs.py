"""What one adapted layer does in a training step, counted instead of timed, and held to exact values.

Shape legend
    T   tokens      m, n   outputs and inputs      r   LoRA-equivalent rank      R   rank of the dense factors

A change that makes a number smaller lowers it here, in EXPECTED; a number that grows is a regression.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
import torch
from benchmarks.speed.counters import OperationCounter, SavedBytes
from benchmarks.speed.methods import BY_KEY
from torch import nn

T, M, N, R = 4096, 80, 96, 4  # no factor has T elements: the largest, K = 8, has 8 x 4 x 96


DTYPES = {"fp32": torch.float32, "fp32, few tokens": torch.float32, "bf16": torch.bfloat16}


class LayerCosts(NamedTuple):
    """Forward and backward of one adapted layer, the base layer included.

    Attributes:
        matmuls: matrix products. The base layer needs two of them.
        rank_products: multiply-adds beside the base layer's, over T (m + n): LoRA needs 3 r.
        activation_passes: elementwise operations that read or write T x m or T x n.
        thin_passes: those on T x R.
        factor_passes: those that do not grow with T: scaling, scattering and casting factors.
        saved: bytes kept for backward, in T: n elements of x in the base's precision; in bf16, and with dropout, R of
            the thin product and the dense factors; in fp32 nothing else, or for few tokens LoRA's own thin product.

    "fp32" adds the update to the weight, 2 R m n multiplications for R T (m + n); "few tokens" takes the thin products
    of the same T.
    """

    matmuls: int
    rank_products: float
    activation_passes: int
    thin_passes: int
    factor_passes: int
    saved: float


# (method, base precision, dropout) -> costs. Beside a bf16 base the adapter's weights are float32, PEFT's default.
EXPECTED: dict[tuple[str, str, float], LayerCosts] = {
    ("peft-lora", "fp32", 0.0): LayerCosts(8, 12.0, 4, 0, 0, 400.0),
    ("peft-lora", "fp32", 0.1): LayerCosts(8, 12.0, 8, 0, 0, 784.0),
    ("peft-lora", "bf16", 0.0): LayerCosts(8, 12.0, 9, 0, 0, 400.0),
    ("peft-lora", "bf16", 0.1): LayerCosts(8, 12.0, 13, 0, 0, 784.0),
    ("lora", "fp32", 0.0): LayerCosts(8, 8.085227272727273, 0, 0, 5, 384.0),
    ("lora", "fp32", 0.1): LayerCosts(8, 12.0, 5, 2, 3, 496.6875),
    ("lora", "fp32, few tokens", 0.0): LayerCosts(8, 12.0, 0, 0, 5, 400.0),
    ("lora", "bf16", 0.0): LayerCosts(8, 12.0, 0, 0, 6, 200.34375),
    ("lora", "bf16", 0.1): LayerCosts(8, 12.0, 5, 2, 6, 296.34375),
    ("g-lora", "fp32", 0.0): LayerCosts(8, 20.213068181818183, 0, 0, 24, 384.0),
    ("g-lora", "fp32", 0.1): LayerCosts(8, 30.0, 5, 2, 14, 521.71875),
    ("g-lora", "fp32, few tokens", 0.0): LayerCosts(9, 35.45454545454545, 0, 0, 24, 384.0),
    ("g-lora", "bf16", 0.0): LayerCosts(8, 30.0, 0, 0, 20, 212.859375),
    ("g-lora", "bf16", 0.1): LayerCosts(8, 30.0, 5, 2, 20, 308.859375),
    ("cps-lora-2", "fp32", 0.0): LayerCosts(8, 16.170454545454547, 0, 0, 15, 384.0),
    ("cps-lora-2", "fp32", 0.1): LayerCosts(8, 24.0, 5, 2, 9, 513.375),
    ("cps-lora-2", "fp32, few tokens", 0.0): LayerCosts(9, 28.363636363636363, 0, 0, 15, 384.0),
    ("cps-lora-2", "bf16", 0.0): LayerCosts(8, 24.0, 0, 0, 12, 208.6875),
    ("cps-lora-2", "bf16", 0.1): LayerCosts(8, 24.0, 5, 2, 12, 304.6875),
    ("cps-lora-4", "fp32", 0.0): LayerCosts(8, 32.34090909090909, 0, 0, 15, 384.0),
    ("cps-lora-4", "fp32", 0.1): LayerCosts(8, 48.0, 5, 2, 9, 546.75),
    ("cps-lora-4", "fp32, few tokens", 0.0): LayerCosts(9, 56.72727272727273, 0, 0, 15, 384.0),
    ("cps-lora-4", "bf16", 0.0): LayerCosts(8, 48.0, 0, 0, 12, 225.375),
    ("cps-lora-4", "bf16", 0.1): LayerCosts(8, 48.0, 5, 2, 12, 321.375),
    ("cps-lora-8", "fp32", 0.0): LayerCosts(8, 64.68181818181819, 0, 0, 15, 384.0),
    ("cps-lora-8", "fp32", 0.1): LayerCosts(8, 96.0, 5, 2, 9, 613.5),
    ("cps-lora-8", "fp32, few tokens", 0.0): LayerCosts(9, 113.45454545454545, 0, 0, 15, 384.0),
    ("cps-lora-8", "bf16", 0.0): LayerCosts(8, 96.0, 0, 0, 12, 258.75),
    ("cps-lora-8", "bf16", 0.1): LayerCosts(8, 96.0, 5, 2, 12, 354.75),
    ("hybrid", "fp32", 0.0): LayerCosts(8, 20.213068181818183, 0, 0, 26, 384.0),
    ("hybrid", "fp32", 0.1): LayerCosts(8, 30.0, 5, 2, 16, 521.71875),
    ("hybrid", "fp32, few tokens", 0.0): LayerCosts(9, 35.45454545454545, 0, 0, 26, 384.0),
    ("hybrid", "bf16", 0.0): LayerCosts(8, 30.0, 0, 0, 22, 212.859375),
    ("hybrid", "bf16", 0.1): LayerCosts(8, 30.0, 5, 2, 22, 308.859375),
}


class OneLayer(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(N, M, bias=False, dtype=dtype)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def adapted(method: str, dtype: torch.dtype, dropout: float) -> nn.Module:
    torch.manual_seed(0)
    model = BY_KEY[method].wrap(OneLayer(dtype), R, dropout)
    return model.train()


@pytest.fixture(autouse=True)
def few_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "few tokens" in request.node.name:
        monkeypatch.setattr("localora.adapter.update.MANY", float("inf"))


def measure(method: str, dtype: torch.dtype, dropout: float) -> LayerCosts:
    model = adapted(method, dtype, dropout)
    trained = [p for p in model.parameters() if p.requires_grad]
    x = torch.randn(2, T // 2, N, dtype=dtype, requires_grad=True)
    g = torch.ones(2, T // 2, M, dtype=dtype)
    model(x)  # whatever happens once happens here

    saved = SavedBytes([*model.parameters(), *model.buffers()]).record(lambda: model(x))
    with OperationCounter(T, min(M, N)) as counter:
        torch.autograd.grad(model(x), [x, *trained], g)
    counts = counter.counts
    return LayerCosts(
        counts.matmuls,
        (counts.multiply_adds - 2 * T * M * N) / (T * (M + N)),
        counts.activation_passes,
        counts.thin_passes,
        counts.factor_passes,
        saved / T,
    )


@pytest.mark.parametrize(("method", "precision", "dropout"), EXPECTED)
def test_costs_of_a_layer_are_exactly_these(method: str, precision: str, dropout: float) -> None:
    assert measure(method, DTYPES[precision], dropout) == EXPECTED[method, precision, dropout]


def test_no_method_saves_more_than_peft_lora() -> None:
    for precision, dropout in product(("fp32", "bf16"), (0.0, 0.1)):
        most = measure("peft-lora", DTYPES[precision], dropout).saved
        for method in {key[0] for key in EXPECTED}:
            assert measure(method, DTYPES[precision], dropout).saved <= most, method


def test_the_counter_counts_what_runs() -> None:
    x, W = torch.randn(64, 8), torch.randn(4, 8)
    with OperationCounter(tokens=64, narrow=4) as counter:
        y = x @ W.T  # 64 x 4 x 8 multiply-adds
        y = y * 2  # a pass over T x m
        z = x[:, :2] + 1  # a slice is a view, the sum a thin pass
        W * 2  # a factor pass
        torch.addmm(y, x, W.T)
        z.view(-1)
    counts = counter.counts
    assert (counts.matmuls, counts.multiply_adds) == (2, 2 * 64 * 4 * 8)
    assert (counts.activation_passes, counts.thin_passes, counts.factor_passes) == (1, 1, 1)
    assert counter.names == ["aten.mul.Tensor"]


def test_saved_bytes_count_a_storage_once_and_no_parameter() -> None:
    x = torch.randn(64, 8, requires_grad=True)
    W, V = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(4, 8))

    def forward() -> torch.Tensor:
        return (x @ W.T) + (x @ V.T).sigmoid()  # x twice, W, V, and the sigmoid's result

    assert SavedBytes([W, V]).record(forward) == 4 * (64 * 8 + 64 * 4)
    assert SavedBytes([]).record(forward) == 4 * (64 * 8 + 64 * 4 + 2 * 4 * 8)
