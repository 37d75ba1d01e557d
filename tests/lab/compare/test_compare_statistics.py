"""Statistics against scipy, statsmodels and simulated truth."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
from scipy import stats

from localora.lab.compare.statistics import paired
from localora.lab.compare.statistics.equivalence import equivalence_p
from localora.lab.compare.statistics.holm import holm
from localora.lab.compare.statistics.mcnemar import mcnemar
from localora.lab.compare.statistics.paired import Difference, paired_losses, paired_scores
from localora.lab.compare.statistics.verdict import judge

needs_statsmodels = pytest.mark.skipif(find_spec("statsmodels") is None, reason="statsmodels is not installed")


def answers(both: int, ours: int, theirs: int, none: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * ours + [(False, True)] * theirs + [(False, False)] * none
    return [a for a, _ in pairs], [b for _, b in pairs]


@needs_statsmodels
@pytest.mark.parametrize("table", [(30, 12, 3, 20), (5, 1, 9, 5), (0, 40, 41, 9), (3, 2, 2, 0)])
def test_mcnemar_agrees_with_statsmodels(table: tuple[int, int, int, int]) -> None:
    from statsmodels.stats.contingency_tables import mcnemar as reference

    both, ours, theirs, none = table
    found = mcnemar(*answers(*table))
    square = [[both, ours], [theirs, none]]
    assert (found.b, found.c) == (ours, theirs)
    assert found.exact == pytest.approx(reference(square, exact=True).pvalue)
    if ours != theirs:  # statsmodels lets the continuity correction pass below zero there
        assert found.chi_square == pytest.approx(reference(square, exact=False, correction=True).pvalue)


def test_mcnemar_without_a_disagreement_finds_nothing() -> None:
    assert mcnemar([True, False], [True, False]).exact == 1.0
    with pytest.raises(ValueError, match="zip"):
        mcnemar([True], [True, False])


@needs_statsmodels
@pytest.mark.parametrize("seed", range(5))
def test_holm_agrees_with_statsmodels(seed: int) -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(seed).uniform(0, 0.2, 7)
    assert holm(list(p)) == pytest.approx(multipletests(p, method="holm")[1])


@needs_statsmodels
@pytest.mark.parametrize("seed", range(3))
def test_loss_intervals_and_ties_agree_with_scipy_and_statsmodels(seed: int) -> None:
    from statsmodels.stats.weightstats import DescrStatsW

    d = np.random.default_rng(seed).normal(0.01, 0.01, 4)
    found = paired_losses(d, 0.95)
    reference = stats.ttest_1samp(d, 0.0)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert equivalence_p(found, 0.02) == pytest.approx(DescrStatsW(d).ttost_mean(-0.02, 0.02)[0])


@needs_statsmodels
def test_the_standard_error_is_that_of_a_two_way_analysis_of_variance() -> None:
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    random = np.random.default_rng(0)
    S, N = 3, 12
    d = random.normal(0, 0.2, (S, 1)) + random.normal(0, 0.3, (1, N)) + random.normal(0, 0.3, (S, N))
    table = [{"d": d[s, i], "seed": s, "item": i} for s, i in product(range(S), range(N))]
    data = {key: [row[key] for row in table] for key in ("d", "seed", "item")}
    mean_sq = anova_lm(ols("d ~ C(seed) + C(item)", data).fit())["mean_sq"]
    variance = mean_sq["C(item)"] + max(0.0, mean_sq["C(seed)"] - mean_sq["Residual"])
    assert paired_scores(d, 0.95, 100, 0).se == pytest.approx(np.sqrt(variance / (S * N)))


def test_the_bootstrap_has_the_spread_it_is_said_to_have() -> None:
    random = np.random.default_rng(1)
    d = random.normal(0, 0.1, (4, 1)) + random.normal(0, 0.3, (1, 400)) + random.normal(0, 0.3, (4, 400))
    found = paired_scores(d, 0.95, 20_000, 0)
    half = stats.t.ppf(0.975, found.df) * found.se
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)  # four seed effects are no normal sample
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("at_a_time", [paired.COUNTS_AT_A_TIME, 700])
def test_draws_by_class_and_in_parts_are_those_of_single_items(monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(paired, "COUNTS_AT_A_TIME", at_a_time)
    item_means = np.repeat([-1.0, 0.0, 1 / 3, 1.0], [5, 60, 20, 15])
    draws = 20_000
    found = paired._drawn_means(item_means, draws, np.random.default_rng(0))
    one_by_one = np.random.default_rng(1).choice(item_means, (draws, 100)).mean(axis=1)
    assert found.shape == (draws,)
    assert found.mean() == pytest.approx(item_means.mean(), abs=5 * item_means.std() / 10 / draws**0.5)
    assert stats.ks_2samp(np.round(found, 9), np.round(one_by_one, 9)).pvalue > 0.01


@pytest.mark.parametrize(
    ("seeds", "by_seed", "by_item"), [(3, 0.0, 0.0), (3, 0.03, 0.0), (3, 0.0, 0.3), (3, 0.1, 0.1), (5, 0.02, 0.2)]
)
def test_intervals_cover_the_truth_as_often_as_they_say(seeds: int, by_seed: float, by_item: float) -> None:
    random = np.random.default_rng(7)
    items, trials, truth, hits = 200, 400, 0.02, 0
    for _ in range(trials):
        d = truth + random.normal(0, by_seed, (seeds, 1)) + random.normal(0, by_item, (1, items))
        found = paired_scores(d + random.normal(0, 0.3, (seeds, items)), 0.95, 300, 0)
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / trials <= 0.995


def test_right_and_wrong_answers_are_covered_too() -> None:
    """Two methods of equal true accuracy on items of unequal difficulty: no more than one finding in twenty or so."""
    random = np.random.default_rng(3)
    trials, found = 300, 0
    for _ in range(trials):
        chance = random.beta(1, 2, 150)
        d = (random.random((3, 150)) < chance).astype(float) - (random.random((3, 150)) < chance)
        found += paired_scores(d, 0.95, 200, 0).p < 0.05
    assert found / trials <= 0.06


def test_the_same_answers_to_few_items_are_no_tie() -> None:
    few, many = (paired_scores(np.zeros((3, N)), 0.95, 100, 0) for N in (48, 998))
    assert (few.mean, few.se, few.df, few.p) == (0.0, 1 / 50, 47, 1.0)
    assert few.high == -few.low == pytest.approx(stats.t.ppf(0.975, 47) / 50)
    assert [judge([same], 0.01, 0.95, higher_is_better=True)[0].verdict for same in (few, many)] == ["undecided", "tie"]
    always = paired_scores(np.ones((3, 48)), 0.95, 100, 0)
    assert always.mean == 1.0
    assert always.p < 1e-6


def test_the_same_difference_with_every_seed_is_certain_and_too_little_data_is_refused() -> None:
    assert paired_losses(np.full(3, 0.125), 0.95).p == 0.0
    with pytest.raises(ValueError, match="at least 2 seeds"):
        paired_losses(np.array([0.1]), 0.95)
    with pytest.raises(ValueError, match="at least 2 seeds"):
        paired_scores(np.zeros((1, 5)), 0.95, 100, 0)


def difference(mean: float, se: float, df: float = 50) -> Difference:
    return Difference(mean, mean - 2 * se, mean + 2 * se, se, df, float(2 * stats.t.sf(abs(mean) / se, df)))


def test_each_verdict_has_its_case() -> None:
    cases = [difference(0.05, 0.005), difference(-0.05, 0.005), difference(0.0, 0.002), difference(0.01, 0.01)]
    words = [j.verdict for j in judge(cases, 0.01, 0.95, higher_is_better=True)]
    assert words == ["better", "worse", "tie", "undecided"]
    words = [j.verdict for j in judge(cases, 0.01, 0.95, higher_is_better=False)]
    assert words == ["worse", "better", "tie", "undecided"]


def test_a_real_difference_within_the_margin_is_a_tie() -> None:
    (judged,) = judge([difference(0.004, 0.001)], 0.01, 0.95, higher_is_better=True)
    assert judged.p_holm < 0.05
    assert judged.verdict == "tie"


def test_more_methods_make_a_finding_harder() -> None:
    alone = judge([difference(0.025, 0.01)], 0.001, 0.95, higher_is_better=True)[0]
    crowd = judge([difference(0.025, 0.01)] + [difference(0.0, 0.01)] * 9, 0.001, 0.95, higher_is_better=True)[0]
    assert (alone.verdict, crowd.verdict) == ("better", "undecided")
    assert crowd.p_holm == pytest.approx(10 * alone.p_holm)
