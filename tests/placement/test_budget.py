"""Budgets: every admissible setting costs what LoRA of rank r costs; the others name a setting that works."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from localora.placement.budget import (
    LayerBudget,
    LocalShape,
    clustered_budget,
    global_local_budget,
)

SHAPES = [(64, 64), (192, 576), (576, 576), (1536, 576), (576, 1536), (4096, 1024), (4096, 4096), (14336, 4096)]
shapes = st.sampled_from(SHAPES) | st.tuples(st.integers(1, 14336), st.integers(1, 4096))
small = st.tuples(st.integers(1, 40), st.integers(1, 40))
ranks = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256]) | st.integers(1, 256)
shares = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1)


def check(budget: LayerBudget, m: int, n: int, r: int) -> None:
    lora = r * m + r * n
    assert abs(budget.parameters - lora) <= 0.005 * lora
    parameters = budget.global_rank * (m + n)
    if budget.local:
        local = budget.local
        assert local.clusters > 1 or local.rank <= min(local.rows, local.cols) or not budget.has_choice
        assert 1 <= local.rows <= m
        assert 1 <= local.cols <= n
        assert local.clusters <= min(m, n)
        parameters += local.rank * local.cols + local.rows * local.rank
    assert budget.parameters == parameters


@settings(max_examples=250, deadline=None)
@given(shapes | small, ranks, shares, st.floats(0.01, 1.0))
@example((64, 64), 1, 0.5, 0.25)
@example((64, 64), 64, 0.5, 0.1)
@example((14336, 4096), 256, 0.5, 0.25)
@example((64, 4096), 63, 0.01, 1.0)
@example((64, 64), 128, 0.9921875, 0.0625)
@example((1, 1), 256, 0.5, 0.25)
def test_g_lora_costs_what_lora_costs_on_every_layer(shape: tuple[int, int], r: int, share: float, size: float) -> None:
    m, n = shape
    budget = global_local_budget(m, n, r, share, size)
    check(budget, m, n, r)
    if budget.compromise:
        return
    assert budget.global_rank == int(share * r + 0.5)
    if budget.local:
        wanted = size * (m + n)
        assert abs(budget.local.rows + budget.local.cols - wanted) <= max(0.6 * wanted, 2)
    else:
        assert int(share * r + 0.5) == r


@settings(max_examples=150, deadline=None)
@given(shapes | small, ranks, shares, st.integers(1, 127))
def test_clusters_cost_exactly_what_lora_costs(shape: tuple[int, int], r: int, share: float, clusters: int) -> None:
    m, n = shape
    budget = clustered_budget(m, n, r, share, clusters)
    assert budget.parameters == r * (m + n)
    check(budget, m, n, r)
    if budget.local:
        assert (budget.local.rows, budget.local.cols) == (m, n)
        assert budget.dense_rank == budget.global_rank + budget.local.clusters * budget.local.rank
    if not budget.compromise:
        assert budget.global_rank == int(share * r + 0.5)
        assert budget.global_rank == r or budget.local.clusters == clusters


QWEN_05B = [(896, 896), (128, 896), (4864, 896), (896, 4864)]  # the layers of Qwen2.5-0.5B under "all-linear"
SMOLLM2 = [(576, 576), (192, 576), (1536, 576), (576, 1536)]


@pytest.mark.parametrize(
    ("m", "n", "r", "expected", "compromise"),
    [
        (128, 896, 32, (16, LocalShape(1, 45, 46, 318)), "a block of 0.355 of its rows and columns instead of 0.25"),
        (192, 576, 32, (16, LocalShape(1, 55, 56, 167)), "a block of 0.29 of its rows and columns instead of 0.25"),
        (2, 896, 8, (8, None), "LoRA's own factors"),
        (2, 20, 2, (2, None), "LoRA's own factors"),
        (10, 20, 2, (1, LocalShape(1, 3, 3, 7)), "a block of 0.333 of its rows and columns instead of 0.25"),
        (8, 8, 20, (20, None), "LoRA's own factors"),
        (64, 96, 1, (1, None), "LoRA's own factors, since rank 1 cannot be split (global_share=0.5)"),
    ],
)
def test_what_a_layer_too_small_for_g_lora_gets(
    m: int, n: int, r: int, expected: tuple[int, LocalShape | None], compromise: str
) -> None:
    budget = global_local_budget(m, n, r, 0.5, 0.25)
    assert (budget.global_rank, budget.local) == expected
    assert budget.compromise == compromise


@pytest.mark.parametrize(
    ("m", "n", "r", "expected", "compromise"),
    [
        (2, 20, 8, (0, LocalShape(2, 8, 2, 20)), "2 clusters instead of 4"),
        (1, 20, 8, (8, None), "LoRA's own factors"),
        (8, 8, 20, (0, LocalShape(4, 20, 8, 8)), ""),
    ],
)
def test_what_a_layer_too_small_for_clusters_gets(
    m: int, n: int, r: int, expected: tuple[int, LocalShape | None], compromise: str
) -> None:
    budget = clustered_budget(m, n, r, 0.0, 4)
    assert (budget.global_rank, budget.local) == expected
    assert budget.compromise == compromise


@pytest.mark.parametrize("r", [2, 4, 8, 16, 32, 64, 128, 256])
def test_layers_of_real_models_are_all_held_by_a_block(r: int) -> None:
    """From these ranks on a key projection is too small for the default block, and from 256 for any."""
    for m, n in QWEN_05B + SMOLLM2:
        check(global_local_budget(m, n, r, 0.5, 0.25), m, n, r)
    assert bool(global_local_budget(128, 896, r, 0.5, 0.25).compromise) == (r >= 32)
    assert bool(global_local_budget(192, 576, r, 0.5, 0.25).compromise) == (r >= 32)
    assert (global_local_budget(128, 896, r, 0.5, 0.25).local is None) == (r >= 256)


@pytest.mark.parametrize(
    ("size", "rank", "side"),
    [(0.25, 32, 2048), (0.5, 16, 4096), (1.0, 8, 8192), (0.125, 64, 1024)],
)
def test_block_rank_follows_from_its_size(size: float, rank: int, side: int) -> None:
    budget = global_local_budget(4096, 4096, 16, 0.5, size)
    assert (budget.global_rank, budget.local.rank, budget.local.rows + budget.local.cols) == (8, rank, side)
    assert budget.local.rows == budget.local.cols
    assert budget.parameters == 16 * (4096 + 4096)
    assert budget.dense_rank == 8 + rank


def test_block_keeps_the_proportions_of_the_matrix() -> None:
    local = global_local_budget(1536, 576, 16, 0.5, 0.25).local
    assert local.rows / local.cols == pytest.approx(1536 / 576, rel=0.01)


def test_all_global_is_lora() -> None:
    assert global_local_budget(64, 96, 8, 1.0, 0.25) == LayerBudget(64, 96, 8, None)
    assert clustered_budget(64, 96, 8, 1.0, 4) == LayerBudget(64, 96, 8, None)


@pytest.mark.parametrize(
    ("share", "r_g", "compromise"),
    [
        (0.01, 1, "a global term of rank 1 of 8 (global_share=0.01 rounds to 0)"),
        (0.99, 7, "a global term of rank 7 of 8 (global_share=0.99 rounds to 8)"),
        (0.5, 4, ""),
        (0.0, 0, ""),
    ],
)
def test_no_term_that_was_asked_for_is_rounded_away(share: float, r_g: int, compromise: str) -> None:
    for budget in (global_local_budget(64, 96, 8, share, 0.5), clustered_budget(64, 96, 8, share, 4)):
        assert (budget.global_rank, budget.compromise) == (r_g, compromise)


def test_plain_lora_leaves_nothing_to_choose() -> None:
    lora = (global_local_budget(64, 96, 8, 1.0, 0.25), clustered_budget(64, 96, 8, 0.0, 1))
    others = (global_local_budget(64, 96, 8, 0.5, 0.5), clustered_budget(64, 96, 8, 0.5, 2))
    assert [budget.has_choice for budget in lora + others] == [False, False, True, True]
