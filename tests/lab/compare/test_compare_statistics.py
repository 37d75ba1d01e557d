"""Statistics against scipy, statsmodels and simulated truth."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
from scipy import stats

from localora.lab.compare.measures import mcnemar
from localora.lab.compare.statistics.paired import Difference, difference, floor_of_answers, pooled_spread
from localora.lab.compare.statistics.verdict import Case, equivalence_p, holm, judge

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
    assert found == pytest.approx(reference(square, exact=True).pvalue)


def test_mcnemar_without_a_disagreement_finds_nothing() -> None:
    assert mcnemar([True, False], [True, False]) == 1.0
    with pytest.raises(ValueError, match="zip"):
        mcnemar([True], [True, False])


@needs_statsmodels
@pytest.mark.parametrize("seed", range(5))
def test_holm_agrees_with_statsmodels(seed: int) -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(seed).uniform(0, 0.2, 7)
    assert holm(list(p)) == pytest.approx(multipletests(p, method="holm")[1])


def of_two(d_SN: np.ndarray, floor: float = 0.0) -> Difference:
    """The difference of two methods that are alone in their table."""
    d_SN = np.atleast_2d(d_SN.T).T
    return difference(d_SN, pooled_spread(np.stack([d_SN, np.zeros_like(d_SN)])), 0.95, floor)


@needs_statsmodels
@pytest.mark.parametrize("seed", range(3))
def test_two_methods_without_items_have_students_paired_interval(seed: int) -> None:
    from statsmodels.stats.weightstats import DescrStatsW

    d = np.random.default_rng(seed).normal(0.01, 0.01, 4)
    found = of_two(d)
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
    assert of_two(d).se == pytest.approx(np.sqrt(variance / (S * N)))


@needs_statsmodels
def test_the_spread_over_seeds_is_pooled_over_the_methods() -> None:
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    random = np.random.default_rng(3)
    G, S = 6, 3
    y = random.normal(0, 1, (1, S)) + random.normal(0, 0.1, (G, S))
    y[1] = y[0] + 0.3 + np.array([1e-4, 0.0, -1e-4])  # by luck, two that go up and down together
    data = {
        "y": y.ravel(),
        "method": [g for g, _ in product(range(G), range(S))],
        "seed": [s for _, s in product(range(G), range(S))],
    }
    residual = anova_lm(ols("y ~ C(method) + C(seed)", data).fit())["mean_sq"]["Residual"]
    found = difference((y[1] - y[0])[:, None], pooled_spread(y[:, :, None]), 0.95)
    assert found.se == pytest.approx(np.sqrt(2 * residual / S))
    assert found.df == (G - 1) * (S - 1)
    alone = of_two(y[1] - y[0])
    assert alone.se < found.se / 100  # which is what three seeds that agree used to be taken for


def test_a_pair_that_varies_more_than_the_rest_keeps_its_own_spread() -> None:
    random = np.random.default_rng(5)
    y = random.normal(0, 0.01, (6, 3))
    y[1] = [0.0, 1.0, 2.0]
    d = (y[1] - y[0])[:, None]
    assert difference(d, pooled_spread(y[:, :, None]), 0.95).se == pytest.approx(d.std(ddof=1) / 3**0.5)


def test_degrees_of_freedom_are_no_fewer_than_those_of_the_seeds() -> None:
    """Satterthwaite's formula, with what is left taken off the seeds' part, would give less than two here."""
    random = np.random.default_rng(6)
    found = [of_two(random.normal(0, 0.08, (3, 1)) + random.normal(0, 1, (3, 30))).df for _ in range(200)]
    assert min(found) == 2.0


def test_the_floor_holds_for_answers_that_hardly_differ_too() -> None:
    d = np.zeros((3, 998))
    d[0, 0] = 1.0
    assert of_two(d).se == pytest.approx(1 / (3 * 998), rel=0.1)
    assert of_two(d, floor_of_answers(998)).se == 1 / 1000


def simulated(random: np.random.Generator, G: int, S: int, N: int, by_item: float) -> np.ndarray:
    """Methods of one kind: each trains a little differently with each seed, and each has items that suit it."""
    y = random.normal(0, 0.05, (1, S, 1)) + random.normal(0, 1, (1, 1, N))
    return (
        y + random.normal(0, 0.02, (G, S, 1)) + random.normal(0, by_item, (G, 1, N)) + random.normal(0, 0.2, (G, S, N))
    )


@pytest.mark.parametrize("by_item", [0.0, 0.3])
def test_findings_among_methods_that_are_the_same_are_as_rare_as_they_say(by_item: float) -> None:
    random, trials = np.random.default_rng(7), 200
    found = covered = fixed = 0
    for _ in range(trials):
        y = simulated(random, 6, 6, 100, by_item)
        spread = pooled_spread(y)
        each = [difference(y[g] - y[0], spread, 0.95) for g in range(1, 6)]
        found += min(holm([one.p for one in each])) < 0.05
        covered += sum(one.low <= 0 <= one.high for one in each)
        fixed += min(holm([stats.ttest_1samp((y[g] - y[0]).mean(1), 0).pvalue for g in range(1, 6)])) < 0.05
    assert found / trials <= 0.09  # two standard errors above 0.05 are 0.08
    assert 0.93 <= covered / (5 * trials) <= 0.995
    if by_item:
        assert fixed / trials > 0.2  # items that count as fixed: what a mean a run cannot know


def test_a_true_difference_is_found_with_three_seeds() -> None:
    random, trials = np.random.default_rng(8), 100
    found = alone = 0
    for _ in range(trials):
        y = simulated(random, 9, 3, 200, 0.0)
        y[1] -= 0.05
        spread = pooled_spread(y)
        found += holm([difference(y[g] - y[0], spread, 0.95).p for g in range(1, 9)])[0] < 0.05
        alone += holm([stats.ttest_1samp((y[g] - y[0]).mean(1), 0).pvalue for g in range(1, 9)])[0] < 0.05
    assert found > 3 * alone
    assert found / trials > 0.15


@pytest.mark.parametrize(("better", "least", "most"), [(0.0, 0.0, 0.08), (0.2, 0.8, 1.0)])
def test_right_and_wrong_answers_differ_where_they_do(better: float, least: float, most: float) -> None:
    """Two methods on items of unequal difficulty, of equal true accuracy or one ahead."""
    random, trials = np.random.default_rng(3), 200
    p = []
    for _ in range(trials):
        chance = random.beta(1, 2, 150)
        ahead = np.minimum(1, chance + better)
        d = (random.random((3, 150)) < ahead).astype(float) - (random.random((3, 150)) < chance)
        p.append(of_two(d, floor_of_answers(150)).p)
    assert least <= np.mean(np.array(p) < 0.05) <= most
    assert len(set(p)) > trials / 2  # they are no constant


def test_the_same_answers_to_few_items_are_no_tie() -> None:
    few, many = (of_two(np.zeros((3, N)), floor_of_answers(N)) for N in (48, 9998))
    assert (few.mean, few.se, few.df, few.p) == (0.0, 1 / 50, 2, 1.0)
    assert few.high == -few.low == pytest.approx(stats.t.ppf(0.975, 2) / 50)
    cases = [Case(same, 0.01, True) for same in (few, many)]
    assert [judge([case], 0.95)[0].verdict for case in cases] == ["undecided", "tie"]
    always = of_two(np.ones((3, 48)), floor_of_answers(48))
    assert always.mean == 1.0
    assert always.p < 1e-3


def test_nothing_seen_to_vary_is_no_proof_and_too_little_data_is_refused() -> None:
    found = of_two(np.full(3, 0.125))
    assert (found.se, found.p) == (0.0, 0.25)  # three signs alike by chance, either way
    assert of_two(np.zeros(3)).p == 1.0
    with pytest.raises(ValueError, match="at least 2 methods and 2 seeds"):
        pooled_spread(np.zeros((2, 1, 5)))
    with pytest.raises(ValueError, match="at least 2 seeds"):
        difference(np.zeros((1, 5)), pooled_spread(np.zeros((2, 2, 5))), 0.95)


def a_difference(mean: float, se: float, df: float = 50) -> Difference:
    return Difference(mean, mean - 2 * se, mean + 2 * se, se, df, float(2 * stats.t.sf(abs(mean) / se, df)))


def words(cases: list[Difference], margin: float, higher: bool = True) -> list[str]:
    return [judged.verdict for judged in judge([Case(case, margin, higher) for case in cases], 0.95)]


def test_each_verdict_has_its_case() -> None:
    cases = [a_difference(0.05, 0.005), a_difference(-0.05, 0.005), a_difference(0.0, 0.002), a_difference(0.01, 0.01)]
    assert words(cases, 0.01) == ["better", "worse", "tie", "undecided"]
    assert words(cases, 0.01, higher=False) == ["worse", "better", "tie", "undecided"]


def test_a_real_difference_within_the_margin_is_a_tie() -> None:
    (judged,) = judge([Case(a_difference(0.004, 0.001), 0.01, True)], 0.95)
    assert judged.p_holm < 0.05
    assert judged.verdict == "tie"


def test_better_is_better_by_more_than_the_margin() -> None:
    assert words([a_difference(-0.004, 0.001)], 0.005, higher=False) == ["undecided"]
    assert words([a_difference(-0.006, 0.001)], 0.005, higher=False) == ["better"]


def test_more_methods_make_a_finding_harder() -> None:
    one, others = Case(a_difference(0.025, 0.01), 0.001, True), [Case(a_difference(0.0, 0.01), 0.001, False)] * 9
    (alone,), crowd = judge([one], 0.95), judge([one, *others], 0.95)[0]
    assert (alone.verdict, crowd.verdict) == ("better", "undecided")
    assert crowd.p_holm == pytest.approx(10 * alone.p_holm)
