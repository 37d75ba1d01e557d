"""The comparison as data: a table a task and measure, with intervals, verdicts and headroom; costs; learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean, median, stdev

import numpy as np

from localora.lab.compare.headroom import Headroom, measure_headroom
from localora.lab.compare.learning_rates import Choice
from localora.lab.compare.measures import Measure, measures
from localora.lab.compare.plan import Contender, ResolvedPlan
from localora.lab.compare.runs import RunSpec, final_run
from localora.lab.compare.same_data import check_same_data
from localora.lab.compare.same_machine import check_same_machine, describe, made_on
from localora.lab.compare.schedule import Schedule, schedule
from localora.lab.compare.statistics.mcnemar import McNemar, mcnemar
from localora.lab.compare.statistics.paired import Difference, paired_losses, paired_scores
from localora.lab.compare.statistics.verdict import Judged, judge
from localora.lab.compare.store import Outcome, Store

BySeed = dict[int, Measure]


@dataclass(frozen=True)
class Line:
    """A method in a table. `judged` is None for the baseline, headroom runs, and where fewer than 2 seeds pair up."""

    contender: Contender
    rate: float
    values: tuple[float, ...]  # one a seed
    judged: Judged | None
    mcnemar: tuple[McNemar, ...]  # one a seed

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def sd(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Contrast:
    """Two methods of the plan's `contrasts`: `label` over `base`."""

    label: str
    base: str
    judged: Judged


@dataclass(frozen=True)
class Table:
    task: str
    measure: str
    higher_is_better: bool
    margin: float
    lines: list[Line]
    headroom: list[Headroom]
    contrasts: list[Contrast] = field(default_factory=list)


@dataclass(frozen=True)
class Costs:
    """Means over a method's final runs. `train_seconds` begin with what a method does before its first step."""

    contender: Contender
    task: str
    train_seconds: float
    calibrate_seconds: float | None
    peak_memory_mib: float
    exported_rank: int | None
    effective_rank: float | None
    stable_rank: float | None


@dataclass(frozen=True)
class Comparison:
    resolved: ResolvedPlan
    state: Schedule
    outcomes: Mapping[RunSpec, Outcome]
    tables: list[Table]
    costs: list[Costs]
    choices: Mapping[tuple[str, str], Choice]
    seconds: float = 0.0
    machines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what a reader must know of how the runs were made

    @property
    def left(self) -> int:
        """Runs still to be made."""
        return len(self.state.due) + sum(self.state.later.values())

    @property
    def incomplete(self) -> bool:
        return bool(self.left or self.state.failed)

    def plateau(self, task: str, label: str) -> list[float]:
        """The rates tried whose validation loss is within the loss margin of the best."""
        tried = self.choices[task, label].tried
        best = min(tried.values())
        return [rate for rate, loss in tried.items() if loss <= best + self.resolved.plan.statistics.loss_margin]


def compare_records(store: Store) -> Comparison:
    """Read a comparison's folder.

    Raises:
        PlanError: no comparison there, records of another plan, or runs on data or machines that differ.
        RecordError: a damaged record.
    """
    resolved = store.load_plan()
    state = schedule(resolved, store.read, retry_failed=False)
    outcomes = {spec: store.read(spec) for spec in (*state.finished, *state.diverged, *state.failed)}
    finished = {spec: outcomes[spec] for spec in state.finished}
    check_same_data(finished)
    notes = check_same_machine(finished, mixed=resolved.plan.allow_mixed_machines)
    tables, costs = [], []
    for task in resolved.plan.tasks:
        finals = _finals(resolved, state, store, task)
        names = dict.fromkeys(name for runs in finals.values() for found in runs.values() for name in measures(found))
        tables += [_table(resolved, state, task, name, finals) for name in names]
        costs += [_costs(resolved.contender(label), task, runs) for label, runs in finals.items() if runs]
    records = [outcome.record for outcome in outcomes.values() if outcome.record is not None]
    return Comparison(
        resolved=resolved,
        state=state,
        outcomes=outcomes,
        tables=tables,
        costs=costs,
        choices=state.choices,
        seconds=sum(sum(s for name, s in r.seconds.items() if name != "calibrate") for r in records),
        machines=sorted({describe(made_on(r)) for r in records if r.status == "finished"}),
        notes=notes,
    )


def _finals(resolved: ResolvedPlan, state: Schedule, store: Store, task: str) -> dict[str, dict[int, Outcome]]:
    """label -> seed -> finished run at the chosen rate."""
    finals: dict[str, dict[int, Outcome]] = {}
    for contender in resolved.contenders:
        choice = state.choices.get((task, contender.label))
        if choice is None or choice.rate is None:
            continue
        runs = {
            seed: store.read(final_run(resolved, task, contender, choice.rate, seed)) for seed in resolved.plan.seeds
        }
        finals[contender.label] = {seed: outcome for seed, outcome in runs.items() if outcome.status == "finished"}
    return finals


def _table(
    resolved: ResolvedPlan, state: Schedule, task: str, name: str, finals: dict[str, dict[int, Outcome]]
) -> Table:
    plan = resolved.plan
    found: dict[str, BySeed] = {}
    for label, runs in finals.items():
        by_seed = {seed: measures(outcome)[name] for seed, outcome in runs.items() if name in measures(outcome)}
        if by_seed:
            found[label] = by_seed
    higher = next(measure.higher_is_better for by_seed in found.values() for measure in by_seed.values())
    margin = plan.statistics.score_margin if higher else plan.statistics.loss_margin
    baseline = found.get(plan.baseline, {})
    differences = {
        c.label: difference
        for c in resolved.rivals
        if (difference := paired_difference(resolved, found.get(c.label, {}), baseline)) is not None
    }
    verdicts = judge(list(differences.values()), margin, plan.statistics.confidence, higher_is_better=higher)
    judged = dict(zip(differences, verdicts, strict=True))
    lines = [
        Line(
            contender=resolved.contender(label),
            rate=state.choices[task, label].rate or 0.0,
            values=tuple(measure.value for measure in by_seed.values()),
            judged=judged.get(label),
            mcnemar=_mcnemar(by_seed, baseline) if higher and label in judged else (),
        )
        for label, by_seed in found.items()
    ]

    def over(label: str, base: str) -> Difference | None:
        return paired_difference(resolved, found.get(label, {}), found.get(base, {}))

    headroom = measure_headroom(resolved, over, higher, margin)
    pairs = [(*pair, known) for pair in plan.contrasts if (known := over(*pair)) is not None]
    verdicts = judge([known for *_, known in pairs], margin, plan.statistics.confidence, higher_is_better=higher)
    contrasts = [Contrast(label, base, judged) for (label, base, _), judged in zip(pairs, verdicts, strict=True)]
    return Table(task, name, higher, margin, lines, headroom, contrasts)


def paired_difference(resolved: ResolvedPlan, ours: BySeed, theirs: BySeed) -> Difference | None:
    """Over the seeds both have; None where fewer than two."""
    seeds = [seed for seed in ours if seed in theirs]
    settings = resolved.plan.statistics
    if len(seeds) < 2:
        return None
    items = [(ours[seed].items, theirs[seed].items) for seed in seeds]
    if all(a is not None and b is not None and len(a) == len(b) > 1 for a, b in items):
        d_SN = np.array([np.subtract(a, b) for a, b in items])  # type: ignore[arg-type]
        return paired_scores(d_SN, settings.confidence, settings.draws, settings.seed)
    return paired_losses(np.array([ours[seed].value - theirs[seed].value for seed in seeds]), settings.confidence)


def _mcnemar(ours: BySeed, theirs: BySeed) -> tuple[McNemar, ...]:
    pairs = [(ours[seed].items, theirs[seed].items) for seed in ours if seed in theirs]
    return tuple(mcnemar([x > 0 for x in a], [x > 0 for x in b]) for a, b in pairs if a is not None and b is not None)


def _costs(contender: Contender, task: str, runs: dict[int, Outcome]) -> Costs:
    records = [outcome.record for outcome in runs.values() if outcome.record is not None]
    calibrations = [record.seconds["calibrate"] for record in records if "calibrate" in record.seconds]
    exported = [int(record.export["rank"]) for record in records if record.export is not None]
    updates = [outcome.update for outcome in runs.values() if outcome.update is not None]
    effective = [update.effective_rank for update in updates if update.effective_rank is not None]
    stable = [update.stable_rank for update in updates if update.stable_rank is not None]
    plain = contender.method.r if contender.method.name in ("lora", "rslora") else None
    return Costs(
        contender=contender,
        task=task,
        train_seconds=mean(record.seconds.get("attach", 0.0) + record.seconds.get("train", 0.0) for record in records),
        calibrate_seconds=mean(calibrations) if calibrations else None,
        peak_memory_mib=mean(record.peak_memory_mib for record in records),
        exported_rank=max(exported, default=plain),
        effective_rank=median(effective) if effective else None,
        stable_rank=median(stable) if stable else None,
    )
