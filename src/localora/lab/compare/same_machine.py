"""Runs are compared only where they were made alike: another processor alone moves losses as some methods do."""

from __future__ import annotations

from collections.abc import Mapping

from localora.lab.compare.plan import PlanError
from localora.lab.compare.runs import RunSpec
from localora.lab.compare.store import Outcome
from localora.lab.machine import describe_machine
from localora.lab.training.record import RunRecord, package_versions

NOW = "this machine"

Made = dict[str, str]  # processor, torch, dtype: what is known of them


def made_on(record: RunRecord) -> Made:
    """On what a run was made; a record of an earlier version says less."""
    known = {
        "processor": _processor(record.machine),
        "torch": record.versions.get("torch"),
        "dtype": record.dtype or (record.recipe.get("model") or {}).get("dtype"),
    }
    return {key: str(value) for key, value in known.items() if value}


def this_machine() -> Made:
    return {"processor": _processor(describe_machine()) or "", "torch": package_versions()["torch"]}


def describe(made: Made) -> str:
    """In one line, for tables and errors."""
    return f"{made.get('processor', 'a processor that was not recorded')}, torch {made.get('torch', '?')}, " + made.get(
        "dtype", "dtype not known"
    )


def check_same_machine(
    finished: Mapping[RunSpec, Outcome], present: Made | None = None, *, mixed: bool = False
) -> list[str]:
    """All `finished` runs were made on one model of processor and instruction set, by one torch, in one dtype.

    Args:
        present: this machine, where runs are to be added on it.
        mixed: the plan allows them to differ (`allow_mixed_machines`).

    Returns:
        What the report says of it: nothing where all is known and the same.

    Raises:
        PlanError: names the first two runs that differ, and both machines.
    """
    records = {spec: outcome.record for spec, outcome in finished.items() if outcome.record is not None}
    made = {str(spec.folder): made_on(record) for spec, record in records.items()}
    if present is not None:
        made[NOW] = present
    clash = _first_clash(made)
    if clash is not None and not mixed:
        key, first, other = clash
        raise PlanError(
            "machine",
            f"{first} was made with {key} {made[first][key]}, {other} with {key} {made[other][key]}: numbers that "
            "differ by that alone cannot be compared. Make them on the same one (remove the folder of "
            "the odd one, and it is made again), start anew in another folder (--out), or set "
            "allow_mixed_machines: true, which every page then says",
        )
    said = []
    if clash is not None:
        kinds = sorted({describe(found) for name, found in made.items() if name != NOW})
        said.append(f"MIXED MACHINES, as the plan allows: {'; '.join(kinds)}")
    unknown = sum("processor" not in found for name, found in made.items() if name != NOW)
    if unknown:
        said.append(f"{unknown} run(s) do not say on which processor they were made")
    return said


def _first_clash(made: Mapping[str, Made]) -> tuple[str, str, str] | None:
    """(key, one run, another run) of the first two that differ in what both know."""
    first: dict[str, str] = {}
    for name, found in made.items():
        for key, value in found.items():
            known = first.setdefault(key, name)
            if made[known][key] != value:
                return key, known, name
    return None


def _processor(machine: Mapping[str, object]) -> str | None:
    if machine.get("gpu"):
        return str(machine["gpu"])
    if not machine.get("cpu"):
        return None
    instructions = machine.get("instructions")
    return f"{machine['cpu']} ({' '.join(map(str, instructions if isinstance(instructions, list) else []))})"
