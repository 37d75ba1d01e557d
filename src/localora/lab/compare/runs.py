"""The runs of a comparison: what each is for, where it lives, and its full recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel

from localora.lab.compare.plan import Entry, Published, ResolvedPlan
from localora.lab.recipe.data_spec import DataSpec
from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.methods import LocalizedMethod
from localora.lab.recipe.schema import Recipe
from localora.lab.training.record import Evaluation

Stage = Literal["sweep", "final"]


@dataclass(frozen=True)
class RunSpec:
    """One run; equal to another when task, method, stage, steps, rate and seed are."""

    stage: Stage
    task: str
    label: str
    steps: int
    rate: float
    seed: int
    recipe: Recipe = field(compare=False, repr=False)
    published: Published = field(compare=False, repr=False, default=Published())  # measured after the run
    watch: Mapping[str, DataSpec] = field(compare=False, repr=False, default_factory=dict)  # before it and after it

    @property
    def folder(self) -> PurePosixPath:
        """Relative to the comparison's folder."""
        last = (
            f"rate-{self.rate:g}-steps-{self.steps}-seed-{self.seed}"
            if self.stage == "sweep"
            else f"seed-{self.seed}-rate-{self.rate:g}"
        )
        return PurePosixPath(self.task, self.label, last)


class Job(BaseModel):
    """All that a run's process needs to know; what is known of the untrained model need not be measured again."""

    recipe: Recipe
    keep_adapter: bool
    published: Published
    watch: dict[str, DataSpec]
    before: Evaluation | None = None
    watched_before: dict[str, Evaluation] = {}


def job_text(
    spec: RunSpec, before: Evaluation | None = None, watched_before: Mapping[str, Evaluation] | None = None
) -> str:
    """The job file of a run."""
    job = Job(
        recipe=spec.recipe,
        keep_adapter=spec.stage == "final",
        published=spec.published,
        watch=dict(spec.watch),
        before=before,
        watched_before=dict(watched_before or {}),
    )
    return job.model_dump_json(indent=2) + "\n"


def sweep_runs(resolved: ResolvedPlan, task: str, entry: Entry, rate: float) -> list[RunSpec]:
    """Those that help to choose the rate, one a seed of `learning_rates.seeds`."""
    return [sweep_run(resolved, task, entry, rate, seed) for seed in resolved.plan.learning_rates.seeds]


def sweep_run(resolved: ResolvedPlan, task: str, entry: Entry, rate: float, seed: int) -> RunSpec:
    """A run that helps to choose the rate. Its validation loss counts; of the test split it sees one example."""
    rates = resolved.plan.learning_rates
    evaluation = {"examples": 1, "curve_points": 1, "curve_examples": rates.validation_examples}
    recipe = _recipe(resolved, task, entry, rate, seed, evaluation)
    return RunSpec("sweep", task, entry.label, resolved.plan.training.steps, rate, seed, recipe)


def final_run(resolved: ResolvedPlan, task: str, entry: Entry, rate: float, seed: int) -> RunSpec:
    recipe = _recipe(resolved, task, entry, rate, seed, {})
    plan = resolved.plan
    return RunSpec("final", task, entry.label, plan.training.steps, rate, seed, recipe, plan.published, plan.watch)


def _recipe(
    resolved: ResolvedPlan, task: str, entry: Entry, rate: float, seed: int, evaluation: dict[str, Any]
) -> Recipe:
    plan = resolved.plan
    export = plan.export and seed in plan.seeds and isinstance(entry.method, LocalizedMethod)
    return validate_recipe(
        {
            "model": plan.model.model_dump(),
            "data": plan.tasks[task].model_dump(),
            "method": entry.method.model_dump(),
            "training": plan.training.model_dump() | {"learning_rate": rate, "seed": seed},
            "evaluation": plan.evaluation.model_dump() | evaluation,
            "output": {"export": export, "plots": False},
        },
        resolved.name,
    )
