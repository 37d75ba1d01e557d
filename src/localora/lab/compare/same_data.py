"""Runs are compared only where they saw the same examples: a file that changed between two runs is noticed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from localora.lab.compare.earlier import known_method
from localora.lab.compare.errors import PlanError
from localora.lab.compare.runs import RunSpec
from localora.lab.compare.store import Outcome

NOW = "the data as they are now"

Hashes = Mapping[str, str]  # split -> digest of its examples


def check_same_data(finished: Mapping[RunSpec, Outcome], present: Mapping[str, Hashes] | None = None) -> None:
    """All `finished` runs of a task had the same splits, and all that measured a published task the same items.

    `present` are the digests of each task's splits today, where they are known.

    Raises:
        PlanError: names each run whose data differ from those of an earlier one, or from today's.
    """
    first: dict[tuple[str, str], tuple[str, str]] = {
        (task, split): (digest, NOW) for task, hashes in (present or {}).items() for split, digest in hashes.items()
    }
    problems = []
    for spec, outcome in finished.items():
        for task, part, digest in _seen(spec, outcome):
            known, where = first.setdefault((task, part), (digest, str(spec.folder)))
            if digest != known:
                problems.append(
                    f"{spec.folder}: its {part} examples of {task} differ from {where}, so they cannot be compared; "
                    "remove the folders of the runs on the wrong data, or start anew in another folder (--out)"
                )
    if problems:
        raise PlanError("data", problems)


def made_earlier(finished: Mapping[RunSpec, Outcome]) -> dict[RunSpec, list[str]]:
    """The runs of an earlier version whose method had keys that are gone, and these keys."""
    found = {
        spec: known_method(outcome.record.recipe["method"])[1] for spec, outcome in finished.items() if outcome.record
    }
    return {spec: gone for spec, gone in found.items() if gone}


def check_same_version(finished: Mapping[RunSpec, Outcome]) -> None:
    """No run is to be added to those of a method that was another then.

    Raises:
        PlanError: names the runs and the keys.
    """
    problems = [
        f"{spec.folder}: made by an earlier version, whose method had {', '.join(gone)}; it can be reported "
        "(--report-only), and new runs go to another folder (--out)"
        for spec, gone in made_earlier(finished).items()
    ]
    if problems:
        raise PlanError("version", problems)


def _seen(spec: RunSpec, outcome: Outcome) -> Iterator[tuple[str, str, str]]:
    """(task, part, digest) of everything a run was trained or measured on."""
    assert outcome.record is not None
    for split, digest in outcome.record.data["hashes"].items():
        yield spec.task, split, digest
    after = outcome.record.after
    if spec.stage == "final" and after is not None and after.items is not None:
        yield spec.task, "scored", " ".join(after.items.ids)
    for name, found in (outcome.watched.after if outcome.watched else {}).items():
        if found.items is not None:
            yield name, "watched", " ".join(found.items.ids)
    for scores in outcome.tasks:
        yield scores.task, "published", scores.data_hash
