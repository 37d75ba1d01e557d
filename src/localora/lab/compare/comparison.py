"""The comparison as data: a table a task and measure, with intervals, verdicts and headroom; costs; learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean, median, stdev

from localora.lab.compare.guards import check_same_data
from localora.lab.compare.learning_rates import Choice
from localora.lab.compare.measures import change_of_loss, measures
from localora.lab.compare.plan import Entry, ResolvedPlan
from localora.lab.compare.runs import RunSpec, final_run
from localora.lab.compare.same_machine import check_same_machine, describe, made_on
from localora.lab.compare.schedule import Schedule, schedule
from localora.lab.compare.store import Outcome, Store
from localora.lab.compare.tables import Table, make_tables


@dataclass(frozen=True)
class Costs:
    """Means over a method's final runs."""

    entry: Entry
    task: str
    train_seconds: float  # with what the method does before its first step
    calibrate_seconds: float | None
    peak_memory_mib: float
    trainable: int
    stored: int  # the largest of the runs: parameters of the adapter in the end, frozen terms too
    exported_rank: int | None  # likewise: the exact rank of its plain-LoRA copy
    padded_rank: int | None  # that of the file, where it is padded with zeros
    effective_rank: float | None
    stable_rank: float | None


@dataclass(frozen=True)
class Balance:
    """What a method gained on its task, and what watched tasks lost: means over seeds, and their spread."""

    entry: Entry
    task: str
    gain: tuple[float, float | None]  # nats a token that the test loss fell
    changes: Mapping[str, tuple[float, float | None]]  # watched task -> by how much its loss grew


@dataclass(frozen=True)
class Comparison:
    resolved: ResolvedPlan
    state: Schedule
    outcomes: Mapping[RunSpec, Outcome]
    tables: list[Table]
    costs: list[Costs]
    balances: list[Balance]  # empty where the plan watches nothing
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
    notes = [
        *resolved.plan.notes,
        *(
            f"the plan was changed after {change.results} results were seen: {'; '.join(change.changed)}"
            for change in store.history()
        ),
    ]
    if len(resolved.plan.learning_rates.seeds) < 2:
        notes.append("learning rates were chosen with one seed: differences that are its luck are found more often")
    notes += check_same_machine(finished, mixed=resolved.plan.allow_mixed_machines)
    finals = {task: _finals(resolved, state, store, task) for task in resolved.plan.tasks}
    rates = {
        task: {label: choice.rate for (of, label), choice in state.choices.items() if of == task and choice.rate}
        for task in finals
    }
    methods = [(resolved.entry(label), task, runs) for task in finals for label, runs in finals[task].items()]
    balances = [balance_of(*parts) for parts in methods]
    records = [outcome.record for outcome in outcomes.values() if outcome.record is not None]
    return Comparison(
        resolved=resolved,
        state=state,
        outcomes=outcomes,
        tables=make_tables(resolved, finals, rates),
        costs=[costs_of(*parts) for parts in methods if parts[-1]],
        balances=[balance for balance in balances if balance is not None],
        choices=state.choices,
        seconds=sum(sum(s for name, s in r.seconds.items() if name != "calibrate") for r in records),
        machines=sorted({describe(made_on(r)) for r in records if r.status == "finished"}),
        notes=notes,
    )


def _finals(resolved: ResolvedPlan, state: Schedule, store: Store, task: str) -> dict[str, dict[int, Outcome]]:
    """label -> seed -> finished run at the chosen rate."""
    finals: dict[str, dict[int, Outcome]] = {}
    for entry in resolved.entries:
        choice = state.choices.get((task, entry.label))
        if choice is None or choice.rate is None:
            continue
        runs = {seed: store.read(final_run(resolved, task, entry, choice.rate, seed)) for seed in resolved.plan.seeds}
        finals[entry.label] = {seed: outcome for seed, outcome in runs.items() if outcome.status == "finished"}
    return finals


def costs_of(entry: Entry, task: str, runs: Mapping[int, Outcome]) -> Costs:
    records = [outcome.record for outcome in runs.values() if outcome.record is not None]
    calibrations = [record.seconds["calibrate"] for record in records if "calibrate" in record.seconds]
    updates = [outcome.update for outcome in runs.values() if outcome.update is not None]
    effective = [update.effective_rank for update in updates if update.effective_rank is not None]
    stable = [update.stable_rank for update in updates if update.stable_rank is not None]
    exports = [record.export for record in records if record.export is not None]
    ranks = [record.parameters.rank for record in records if record.parameters.rank is not None]
    plain = entry.method.r if entry.method.name in ("lora", "rslora") else None
    # Older records know only the rank of the file.
    exact = max(ranks, default=max((int(export["rank"]) for export in exports), default=plain))
    padded = max((int(export["rank"]) for export in exports), default=None)
    return Costs(
        entry=entry,
        task=task,
        train_seconds=mean(record.seconds.get("attach", 0.0) + record.seconds.get("train", 0.0) for record in records),
        calibrate_seconds=mean(calibrations) if calibrations else None,
        peak_memory_mib=mean(record.peak_memory_mib for record in records),
        trainable=entry.trainable,
        stored=max(record.parameters.stored or record.parameters.trainable for record in records),
        exported_rank=exact,
        padded_rank=padded if padded != exact else None,
        effective_rank=median(effective) if effective else None,
        stable_rank=median(stable) if stable else None,
    )


def balance_of(entry: Entry, task: str, runs: Mapping[int, Outcome]) -> Balance | None:
    """None where nothing is watched."""
    watched = [outcome for outcome in runs.values() if outcome.watched is not None]
    if not watched:
        return None
    records = [outcome.record for outcome in watched if outcome.record is not None]
    gains = [record.before.loss - record.after.loss for record in records if record.after is not None]
    names = [name for outcome in watched if outcome.watched for name in outcome.watched.after]
    changes = {
        name: _mean_and_spread([measures(outcome)[change_of_loss(name)].value for outcome in watched])
        for name in dict.fromkeys(names)
    }
    return Balance(entry, task, _mean_and_spread(gains), changes)


def _mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    return mean(values), stdev(values) if len(values) > 1 else None
