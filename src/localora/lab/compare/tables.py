"""A table a task and measure: who differs from the baseline, judged over all tables of the report together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import mean, stdev

from localora.lab.compare.measures import BySeed, Measure, mcnemar_by_seed, measures, paired_difference
from localora.lab.compare.plan import Entry, ResolvedPlan
from localora.lab.compare.statistics.paired import Difference
from localora.lab.compare.statistics.verdict import Case, Judged, judge
from localora.lab.compare.store import Outcome

Finals = Mapping[str, Mapping[int, Outcome]]  # label -> seed -> finished run at the chosen rate
Rates = Mapping[str, float]  # label -> the chosen rate
Pair = tuple[str, str]  # the first over the second


@dataclass(frozen=True)
class Line:
    """A method in a table. `judged` is None for the baseline, headroom runs, and where fewer than 2 seeds pair up."""

    entry: Entry
    rate: float
    values: tuple[float, ...]  # one a seed
    judged: Judged | None
    mcnemar: tuple[float, ...]  # p, one a seed

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def sd(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Contrast:
    """Two methods: `label`, whose rank is r, over `base`."""

    label: str
    base: str
    r: int
    judged: Judged


@dataclass(frozen=True)
class Table:
    """`items` is how many test items the differences are over; None where they count as fixed.

    `headroom` are the higher ranks over the same method at r. `primary` are judged as a family of their own; all else
    is judged together with the rest of the report.
    """

    task: str
    measure: str
    higher_is_better: bool
    margin: float
    lines: list[Line]
    headroom: list[Contrast]
    contrasts: list[Contrast] = field(default_factory=list)
    primary: list[Contrast] = field(default_factory=list)
    items: int | None = None
    watched: bool = False


@dataclass
class _Draft:
    """A table before its verdicts."""

    task: str
    name: str
    found: dict[str, BySeed]
    rates: Rates
    higher: bool
    watched: bool
    margin: float
    differences: dict[Pair, Difference] = field(default_factory=dict)
    items: int | None = None

    def cases(self, pairs: list[Pair]) -> dict[Pair, Case]:
        known = {pair: self.differences[pair] for pair in pairs if pair in self.differences}
        return {pair: Case(difference, self.margin, self.higher) for pair, difference in known.items()}


def make_tables(resolved: ResolvedPlan, finals: Mapping[str, Finals], rates: Mapping[str, Rates]) -> list[Table]:
    """All tables of a report; `finals` and `rates` are by task.

    Every test of the report is one of a family, that of the plan's `primary` pairs apart, which were chosen before it
    ran; so that a report errs no more often than its level, however many tables and methods it has.
    """
    plan = resolved.plan
    drafts = [_draft(resolved, task, name, runs, rates[task]) for task, runs in finals.items() for name in _names(runs)]
    rivals = [(entry.label, plan.baseline) for entry in resolved.rivals]
    headroom = [(label, base) for label, (base, _) in plan.headroom_labels.items()]
    wanted: list[Pair] = list(dict.fromkeys([*rivals, *headroom, *plan.contrasts]))
    for draft in drafts:
        sizes = set()
        for pair in dict.fromkeys([*wanted, *plan.primary]):
            if (paired := paired_difference(draft.found, *pair, plan.statistics.confidence)) is not None:
                draft.differences[pair], size = paired
                sizes.add(size)
        draft.items = sizes.pop() if len(sizes) == 1 else None
    primary = _judge([draft.cases([] if draft.watched else plan.primary) for draft in drafts], resolved)
    others = _judge([draft.cases(wanted) for draft in drafts], resolved)
    return [_finish(resolved, *parts) for parts in zip(drafts, primary, others, strict=True)]


def _names(runs: Finals) -> list[str]:
    found = (name for by_seed in runs.values() for outcome in by_seed.values() for name in measures(outcome))
    return list(dict.fromkeys(found))


def _draft(resolved: ResolvedPlan, task: str, name: str, runs: Finals, rates: Rates) -> _Draft:
    found: dict[str, BySeed] = {}
    example: Measure | None = None
    for label, by_seed in runs.items():
        known = {seed: measures(outcome).get(name) for seed, outcome in by_seed.items()}
        if values := {seed: measure for seed, measure in known.items() if measure is not None}:
            found[label] = values
            example = next(iter(values.values()))
    assert example is not None  # the name came from one of the runs
    settings = resolved.plan.statistics
    margin = settings.score_margin if example.higher_is_better else settings.loss_margin
    return _Draft(task, name, found, rates, example.higher_is_better, example.watched, margin)


def _judge(by_table: list[dict[Pair, Case]], resolved: ResolvedPlan) -> list[dict[Pair, Judged]]:
    """The cases of all tables as one family."""
    verdicts = iter(judge([case for cases in by_table for case in cases.values()], resolved.plan.statistics.confidence))
    return [{pair: next(verdicts) for pair in cases} for cases in by_table]


def _finish(resolved: ResolvedPlan, draft: _Draft, primary: dict[Pair, Judged], judged: dict[Pair, Judged]) -> Table:
    plan = resolved.plan
    baseline = draft.found.get(plan.baseline, {})
    rivals = {entry.label for entry in resolved.rivals}
    lines = []
    for label, by_seed in draft.found.items():
        verdict = judged.get((label, plan.baseline)) if label in rivals else None
        answers = draft.higher and not draft.watched and verdict is not None
        lines.append(
            Line(
                entry=resolved.entry(label),
                rate=draft.rates[label],
                values=tuple(measure.value for measure in by_seed.values()),
                judged=verdict,
                mcnemar=mcnemar_by_seed(by_seed, baseline) if answers else (),
            )
        )

    def contrasts(pairs: Iterable[Pair], found: dict[Pair, Judged]) -> list[Contrast]:
        known = [pair for pair in pairs if pair in found]
        return [Contrast(*pair, resolved.entry(pair[0]).method.r, found[pair]) for pair in known]

    return Table(
        task=draft.task,
        measure=draft.name,
        higher_is_better=draft.higher,
        margin=draft.margin,
        lines=lines,
        headroom=contrasts(((label, base) for label, (base, _) in plan.headroom_labels.items()), judged),
        contrasts=contrasts(plan.contrasts, judged),
        primary=contrasts(primary, primary),
        items=draft.items,
        watched=draft.watched,
    )
