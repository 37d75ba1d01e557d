"""A comparison's folder: the resolved plan, and one folder a run.

plan.json                                            the resolved plan
records.jsonl                                        all that is known of the runs: enough without their folders
plan-changes.json                                    what was changed in it after results were there
<task>/<method>/rate-<rate>-steps-<n>-seed-<seed>/   a run that helps to choose the learning rate
<task>/<method>/seed-<seed>-rate-<rate>/             a final run
    run/run.json   its record          update.json   ranks of the update it made; written last, so the run is over
                                       tasks.json    published tasks, where the plan names some
                                       watched.json  tasks before and after, where the plan watches some
    failure.json   why it has none     log.txt       what its process printed
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from localora.files import make_folder, write_file
from localora.lab.compare.collected import Files, read_collected
from localora.lab.compare.plan import PlanError, Published, ResolvedPlan
from localora.lab.compare.runs import RunSpec
from localora.lab.recipe.data_spec import DataSpec
from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.schema import differences
from localora.lab.training.record import Evaluation, Part, RunRecord

MAX_ATTEMPTS = 2  # a failed run is tried once more, when the comparison is called again


class Failure(Part):
    """Why a run has no finished record."""

    error: str
    diverged: bool = False  # the loss stopped being a number: a result, never tried again
    attempts: int = 1

    @property
    def reason(self) -> str:
        """In one line: what the run said last, and how it ended."""
        return " ".join(self.error.splitlines()[-2:])


class Update(Part):
    """How many directions the update of a final run has; None where it has no low-rank factors to read."""

    effective_rank: float | None = None  # median over the layers
    stable_rank: float | None = None
    layers: int = 0


class Watched(Part):
    """The tasks that a plan watches, measured on the base model and on what a final run made of it."""

    tasks: dict[str, DataSpec]
    before: dict[str, Evaluation]
    after: dict[str, Evaluation]


class Tasks(Part):
    """The published tasks that a plan names, measured after a final run."""

    measured: Published
    tasks: dict[str, Evaluation]


class PlanChange(Part):
    """What was changed in a plan when some of its results were known."""

    results: int  # final runs that were finished by then
    changed: list[str]  # one line a key


@dataclass(frozen=True)
class Outcome:
    status: Literal["missing", "finished", "diverged", "failed"]
    record: RunRecord | None = None
    failure: Failure | None = None
    update: Update | None = None
    tasks: Mapping[str, Evaluation] = field(default_factory=dict)
    watched: Watched | None = None


class Store:
    """Reads and writes the folder. Only the process that runs the comparison writes failures; runs write the rest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._finished: dict[RunSpec, Outcome] = {}  # never change again

    def path(self, spec: RunSpec) -> Path:
        return self.folder / spec.folder

    def read(self, spec: RunSpec) -> Outcome:
        """What is known of a run.

        Raises:
            RecordError: a damaged record.
            RecipeError: a finished record of a recipe that this version does not know.
            PlanError: a finished record of another recipe.
        """
        if spec in self._finished:
            return self._finished[spec]
        outcome = self._read(spec)
        if outcome.status == "finished":
            self._finished[spec] = outcome
        return outcome

    def _read(self, spec: RunSpec) -> Outcome:
        path = self.path(spec)
        text = self._text(spec, "run/run.json")
        record = None if text is None else RunRecord.parse(text, path / "run" / "run.json")
        if record is not None and record.status == "finished":
            self._check_recipe(spec, record)
            if not _finite(record):
                return Outcome(
                    "diverged", record, Failure(error="its record holds a loss that is no number", diverged=True)
                )
            if record.after is None or (spec.stage == "sweep" and not record.curve.held_out):
                missing = "evaluation" if record.after is None else "validation loss"
                raise PlanError(
                    path, f"its record says finished and has no {missing}; remove the folder, and it is run again"
                )
            update, tasks, watched = self._load(Update, spec, "update.json"), self._tasks(spec), self._watched(spec)
            if update is not None and tasks is not None and (watched is not None or not spec.watch):
                return Outcome("finished", record, update=update, tasks=tasks, watched=watched)
        failure = self._load(Failure, spec, "failure.json")
        if failure is None:
            return Outcome("missing", record)
        return Outcome("diverged" if failure.diverged else "failed", record, failure)

    def _tasks(self, spec: RunSpec) -> dict[str, Evaluation] | None:
        """What was measured of the published tasks that the plan names; None while they are to come."""
        if not spec.published.tasks:
            return {}
        found = self._load(Tasks, spec, "tasks.json")
        return dict(found.tasks) if found is not None and found.measured.same_items(spec.published) else None

    def _watched(self, spec: RunSpec) -> Watched | None:
        """What was measured of the tasks that the plan watches; None where it watches none, or they are to come."""
        found = self._load(Watched, spec, "watched.json") if spec.watch else None
        return found if found is not None and found.tasks == dict(spec.watch) else None

    def _check_recipe(self, spec: RunSpec, record: RunRecord) -> None:
        # Keys that are new since then are at their default.
        recorded = validate_recipe(record.recipe, str(self.path(spec)))
        changed = differences(recorded.resolved(), spec.recipe.resolved())
        if changed:
            raise PlanError(
                self.path(spec),
                f"finished under another plan ({'; '.join(changed[:3])}); give the new one its own folder (--out)",
            )

    def finished_finals(self) -> int:
        """Final runs in the folder that have their result, of this plan or of an earlier one."""
        here = {path.parent.relative_to(self.folder).as_posix() for path in self.folder.glob("*/*/seed-*/update.json")}
        kept = {name for name, files in self._collected.items() if "/seed-" in name and "update.json" in files}
        return len(here | kept)

    def fail(self, spec: RunSpec, error: str, diverged: bool) -> Failure:
        earlier = self._load(Failure, spec, "failure.json")
        failure = Failure(error=error, diverged=diverged, attempts=1 + (earlier.attempts if earlier else 0))
        write_text(self.path(spec) / "failure.json", failure.model_dump_json(indent=2) + "\n")
        return failure

    def _load(self, kind: type[Any], spec: RunSpec, name: str) -> Any:
        text = self._text(spec, name)
        if text is None:
            return None
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"]
            raise PlanError(self.path(spec) / name, f"cannot be read: {problem}") from None

    def _text(self, spec: RunSpec, name: str) -> str | bytes | None:
        """A file of a run: from its folder where it has one, else from what was collected; None where it is in none."""
        path = self.path(spec)
        if not path.is_dir():
            return self._collected.get(str(spec.folder), {}).get(name)
        try:
            return (path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PlanError(path / name, f"cannot be read: {error.strerror}") from error

    @cached_property
    def _collected(self) -> dict[str, Files]:
        return read_collected(self.folder)

    def save_plan(self, resolved: ResolvedPlan, results: int = 0) -> None:
        """Keep the plan; a change that comes when `results` final runs are there is noted for the report."""
        if results and (self.folder / "plan.json").exists():
            old, new = (plan.model_dump(mode="json") for plan in (self.load_plan().plan, resolved.plan))
            changed = differences(old, new, leave_out="folder")
            if changed:
                history = [*self.history(), PlanChange(results=results, changed=changed)]
                text = json.dumps([change.model_dump() for change in history], indent=2)
                write_text(self.folder / "plan-changes.json", text + "\n")
        write_text(self.folder / "plan.json", json.dumps(resolved.model_dump(mode="json"), indent=2) + "\n")

    def history(self) -> list[PlanChange]:
        """Changes of the plan after results were seen, the first ones first.

        Raises:
            PlanError: the file cannot be read.
        """
        path = self.folder / "plan-changes.json"
        try:
            return TypeAdapter(list[PlanChange]).validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            raise PlanError(path, f"cannot be read: {error}") from None

    def check_folder(self) -> None:
        """Refuse a folder that holds something, and no comparison; hidden files do not count.

        Raises:
            PlanError: so it is; or the folder cannot be.
        """
        try:
            here = [path.name for path in self.folder.iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            return
        except OSError as error:
            raise PlanError(self.folder, f"cannot be the folder of a comparison ({error.strerror})") from None
        known = {"plan.json", "records.jsonl"}
        if here and not known & set(here):
            raise PlanError(
                self.folder, f"is not empty and holds no comparison (found {min(here)}); give another with --out"
            )

    def load_plan(self) -> ResolvedPlan:
        """The plan of this folder.

        Raises:
            PlanError: it holds none, or one of another version.
        """
        path = self.folder / "plan.json"
        try:
            return ResolvedPlan.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PlanError(path, f"is no JSON ({error})") from None
        except OSError as error:
            raise PlanError(self.folder, "holds no comparison (no plan.json)") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise PlanError(path, f"is no plan of this version ({where}: {first['msg']})") from None


def _finite(record: RunRecord) -> bool:
    losses = [point.loss for point in record.curve.held_out] + [e.loss for e in (record.before, record.after) if e]
    return all(math.isfinite(loss) for loss in losses)


def write_text(path: Path, text: str) -> None:
    """As :func:`localora.files.write_file`, in a folder that is made where it is missing."""
    make_folder(path.parent)
    write_file(path, text)
