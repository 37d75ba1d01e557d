"""What a method takes and leaves: time, memory, parameters, ranks; and what it forgot for what it gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, median, stdev

from localora.lab.compare.measures import change_of_loss, measures
from localora.lab.compare.plan import Contender
from localora.lab.compare.store import Outcome


@dataclass(frozen=True)
class Costs:
    """Means over a method's final runs. `train_seconds` begin with what a method does before its first step.

    `stored` and `exported_rank` are the largest of the runs: parameters of the adapter in the end, frozen terms too,
    and the exact rank of its plain-LoRA copy; `padded_rank` is that of the file, where it is padded with zeros.
    """

    contender: Contender
    task: str
    train_seconds: float
    calibrate_seconds: float | None
    peak_memory_mib: float
    trainable: int
    stored: int
    exported_rank: int | None
    padded_rank: int | None
    effective_rank: float | None
    stable_rank: float | None


@dataclass(frozen=True)
class Balance:
    """What a method gained on its task, and what watched tasks lost: means over seeds, and their spread.

    Attributes:
        gain: nats a token that the test loss fell.
        changes: watched task -> by how much its loss grew.
    """

    contender: Contender
    task: str
    gain: tuple[float, float | None]
    changes: Mapping[str, tuple[float, float | None]]


def costs_of(contender: Contender, task: str, runs: Mapping[int, Outcome]) -> Costs:
    records = [outcome.record for outcome in runs.values() if outcome.record is not None]
    calibrations = [record.seconds["calibrate"] for record in records if "calibrate" in record.seconds]
    updates = [outcome.update for outcome in runs.values() if outcome.update is not None]
    effective = [update.effective_rank for update in updates if update.effective_rank is not None]
    stable = [update.stable_rank for update in updates if update.stable_rank is not None]
    exports = [record.export for record in records if record.export is not None]
    ranks = [record.parameters.rank for record in records if record.parameters.rank is not None]
    plain = contender.method.r if contender.method.name in ("lora", "rslora") else None
    # Older records know only the rank of the file.
    exact = max(ranks, default=max((int(export["rank"]) for export in exports), default=plain))
    padded = max((int(export["rank"]) for export in exports), default=None)
    return Costs(
        contender=contender,
        task=task,
        train_seconds=mean(record.seconds.get("attach", 0.0) + record.seconds.get("train", 0.0) for record in records),
        calibrate_seconds=mean(calibrations) if calibrations else None,
        peak_memory_mib=mean(record.peak_memory_mib for record in records),
        trainable=contender.trainable,
        stored=max(record.parameters.stored or record.parameters.trainable for record in records),
        exported_rank=exact,
        padded_rank=padded if padded != exact else None,
        effective_rank=median(effective) if effective else None,
        stable_rank=median(stable) if stable else None,
    )


def balance_of(contender: Contender, task: str, runs: Mapping[int, Outcome]) -> Balance | None:
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
    return Balance(contender, task, _mean_and_spread(gains), changes)


def _mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    return mean(values), stdev(values) if len(values) > 1 else None
