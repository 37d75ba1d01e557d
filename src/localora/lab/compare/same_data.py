"""Runs are compared only where they saw the same examples: a file that changed between two runs is noticed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from localora.lab.compare.plan import PlanError
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
    for name, found in outcome.tasks.items():
        if found.items is not None:
            yield name, "published", " ".join(found.items.ids)
