"""Budgets: every admissible setting costs what LoRA of rank r costs; the others name a setting that works."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from localora.placement.budget import (
    BudgetError,
    LayerBudget,
    clustered_budget,
    global_local_budget,
    lora_parameters,
)

SHAPES = [(64, 64), (192, 576), (576, 576), (1536, 576), (576, 1536), (4096, 1024), (4096, 4096), (14336, 4096)]
shapes = st.sampled_from(SHAPES) | st.tuples(st.integers(64, 14336), st.integers(64, 4096))
ranks = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256]) | st.integers(1, 256)
shares = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1)


def check(budget: LayerBudget, m: int, n: int, r: int) -> None:
    lora = lora_parameters(m, n, r)
    assert lora == r * m + r * n
    assert abs(budget.parameters - lora) <= 0.005 * lora
    parameters = budget.global_rank * (m + n)
    if budget.local:
        local = budget.local
        assert 1 <= local.rank <= min(local.rows, local.cols) or local.clusters > 1
        assert 1 <= local.rows <= m
        assert 1 <= local.cols <= n
        parameters += local.rank * local.cols + local.rows * local.rank
    assert budget.parameters == parameters


def nearest(message: str, what: str) -> float:
    found = re.search(rf"nearest possible (?:{what} )?is ([0-9](?:[0-9.e-]*[0-9])?)", message)
    assert found, message
    return float(found[1])


@settings(max_examples=250, deadline=None)
@given(shapes, ranks, shares, st.floats(0.01, 1.0))
@example((64, 64), 1, 0.5, 0.25)
@example((64, 64), 64, 0.5, 0.1)
@example((14336, 4096), 256, 0.5, 0.25)
@example((64, 4096), 63, 0.01, 1.0)
@example((64, 64), 128, 0.9921875, 0.0625)
def test_g_lora_costs_what_lora_costs_or_says_what_would(
    shape: tuple[int, int], r: int, share: float, size: float
) -> None:
    m, n = shape
    for _ in range(4):  # the rank, then the share, then the size may have to be corrected
        try:
            budget = global_local_budget(m, n, r, share, size)
        except BudgetError as error:
            message = str(error)
            if "does not fit" in message:
                assert r > min(m, n)
                r = int(re.search(r"the largest is (\d+)", message)[1])
            elif ("global_share=" in message and "rounds" in message) or "cannot split" in message:
                share = nearest(message, "")
            else:
                size = nearest(message, "local_size")
        else:
            check(budget, m, n, r)
            assert budget.global_rank == int(share * r + 0.5)
            if budget.local:
                wanted = size * (m + n)
                assert abs(budget.local.rows + budget.local.cols - wanted) <= max(0.6 * wanted, 2)
            return
    pytest.fail(f"the settings that the errors named do not work: r={r} share={share} size={size}")


@settings(max_examples=150, deadline=None)
@given(shapes, ranks, shares, st.integers(1, 127))
def test_clusters_cost_exactly_what_lora_costs(shape: tuple[int, int], r: int, share: float, clusters: int) -> None:
    m, n = shape
    try:
        budget = clustered_budget(m, n, r, share, clusters)
    except BudgetError as error:
        message = str(error)
        if "clusters do not fit" in message:
            assert clusters > min(m, n)
            budget = clustered_budget(m, n, r, 0.0, int(re.search(r"the most is (\d+)", message)[1]))
        elif "does not fit" in message:
            assert r > min(m, n)
            return
        else:
            budget = clustered_budget(m, n, r, nearest(message, ""), clusters)
    assert budget.parameters == lora_parameters(m, n, r)
    if budget.local:
        assert (budget.local.rows, budget.local.cols) == (m, n)
        assert budget.dense_rank == budget.global_rank + budget.local.clusters * budget.local.rank


@pytest.mark.parametrize(
    ("size", "rank", "side"),
    [(0.25, 32, 2048), (0.5, 16, 4096), (1.0, 8, 8192), (0.125, 64, 1024)],
)
def test_block_rank_follows_from_its_size(size: float, rank: int, side: int) -> None:
    budget = global_local_budget(4096, 4096, 16, 0.5, size)
    assert (budget.global_rank, budget.local.rank, budget.local.rows + budget.local.cols) == (8, rank, side)
    assert budget.local.rows == budget.local.cols
    assert budget.parameters == lora_parameters(4096, 4096, 16)
    assert budget.dense_rank == 8 + rank


def test_block_keeps_the_proportions_of_the_matrix() -> None:
    local = global_local_budget(1536, 576, 16, 0.5, 0.25).local
    assert local.rows / local.cols == pytest.approx(1536 / 576, rel=0.01)


def test_all_global_is_lora() -> None:
    assert global_local_budget(64, 96, 8, 1.0, 0.25) == LayerBudget(64, 96, 8, None)
    assert clustered_budget(64, 96, 8, 1.0, 4) == LayerBudget(64, 96, 8, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, 96, 0, 0.5, 0.25), "rank r must be at least 1, got 0"),
        ((64, 96, 65, 0.5, 0.25), "rank r=65 does not fit a 64 x 96 matrix; the largest is 64"),
        ((64, 96, 8, 0.5, 0.0), r"local_size must lie in \(0, 1\], got 0.0"),
        ((64, 96, 8, 0.5, 1.5), r"local_size must lie in \(0, 1\], got 1.5"),
        ((64, 96, 8, -0.1, 0.25), r"global_share must lie in \[0, 1\], got -0.1"),
        ((64, 96, 8, float("nan"), 0.25), r"global_share must lie in \[0, 1\], got nan"),
        ((64, 96, 1, 0.5, 0.25), "cannot split rank r=1; the nearest possible is 1, or r=2"),
        ((64, 96, 8, 0.01, 0.25), r"global_share=0.01 of rank r=8 rounds to 0.*nearest possible is 0.125 "),
        ((64, 96, 8, 0.99, 0.25), r"rounds to 8.*nearest possible is 0.875 "),
        ((64, 64, 32, 0.5, 0.01), r"local_size=0.01 of a 64 x 64 matrix.*nearest possible local_size is 0\.\d+"),
    ],
)
def test_impossible_settings(arguments: tuple[int, int, int, float, float], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        global_local_budget(*arguments)


@pytest.mark.parametrize(("clusters", "message"), [(0, "at least 1, got 0"), (65, "65 clusters do not fit a 64 x 96")])
def test_impossible_clusters(clusters: int, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        clustered_budget(64, 96, 8, 0.0, clusters)


def test_plain_lora_leaves_nothing_to_choose() -> None:
    lora = (global_local_budget(64, 96, 8, 1.0, 0.25), clustered_budget(64, 96, 8, 0.0, 1))
    others = (global_local_budget(64, 96, 8, 0.5, 0.5), clustered_budget(64, 96, 8, 0.5, 2))
    assert [budget.has_choice for budget in lora + others] == [False, False, True, True]
