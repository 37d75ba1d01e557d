"""A comparison's plan: methods x learning rates x seeds x tasks, all else the same for all."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, StrictInt, field_serializer, field_validator, model_validator

from localora.lab.data.published.registry import parse_tasks
from localora.lab.recipe.data_spec import DataSpec
from localora.lab.recipe.methods import MethodSection
from localora.lab.recipe.schema import Dtype, EvaluationSection, ModelSection, RecipeError, TrainingSection
from localora.lab.recipe.section import Number, PathName, PositiveInt, Section

Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100, description="also a folder's name")
]
Rate = Annotated[Number, Field(gt=0)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]
Role = Literal["method", "headroom"]

OWN_SUFFIXES = (".json", ".jsonl", ".gz", ".csv", ".md", ".html", ".png", ".txt")  # of files beside the tasks' folders

CHOSEN_FOR_ALL = {  # keys that a method of a plan cannot have to itself, and where they belong
    "target_modules": "target_modules at the plan's top level",
    "target_parameters": "target_parameters at the plan's top level",
    "steps": "training.steps",
    "batch_size": "training.batch_size",
    "learning_rate": "learning_rates.grid, or learning_rates of the method for a grid of its own",
    "seed": "seeds",
}
CHOSEN_BY_RUN = ("learning_rate", "seed")


class PlanError(RecipeError):
    """A plan that cannot be run, or would not be fair; `problems` holds one line per problem."""


class LearningRates(Section):
    """How each method's learning rate is chosen: on validation examples, never on the test split."""

    grid: list[Rate] = Field(min_length=3, description="tried by every method that has no grid of its own")
    widen: Annotated[StrictInt, Field(ge=0)] = Field(
        default=2, description="values added, one at a time, while the best is at the grid's edge"
    )
    seeds: list[Seed] = Field(
        default=[1000, 1001], min_length=1, description="of these runs, two or more; none of the plan's seeds"
    )
    validation_examples: PositiveInt = Field(default=100, description="that the choice is made on")

    @field_validator("grid")
    @classmethod
    def _distinct(cls, grid: list[float]) -> list[float]:
        return distinct_grid(grid)


class Statistics(Section):
    confidence: Annotated[Number, Field(gt=0.5, lt=1)] = 0.95
    score_margin: Rate = Field(default=0.01, description="scores that differ by less are a tie")
    loss_margin: Rate = Field(default=0.005, description="losses (nats a token) that differ by less are a tie")


class Published(Section):
    """Published tasks that every final run is measured on, beside the test split of what it was trained on."""

    tasks: list[str] = Field(default=[], description="NAME, FAMILY or NAME:PROTOCOL, as `localora evaluate` takes them")
    data: PathName | None = Field(default=None, description="folder of FAMILY/NAME_test.jsonl; the Hub when left out")
    examples: PositiveInt | None = Field(default=None, description="at most so many a task, the same for every run")
    max_new_tokens: PositiveInt = 256

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: list[str]) -> list[str]:
        return [str(name) for name in parse_tasks(tasks)]

    def same_items(self, other: Published) -> bool:
        """Whether both measure the same; the folder may have moved (each task's data_hash says what was in it)."""
        return self.model_copy(update={"data": other.data}) == other


class ComparedModel(ModelSection):
    """A plan names its dtype: runs of one comparison may take place on machines that `auto` would choose apart on."""

    dtype: Dtype = Field(default="float32", description="of the frozen weights: float32, bfloat16 or float16")

    @field_validator("dtype")
    @classmethod
    def _named(cls, dtype: str) -> str:
        if dtype == "auto":
            raise ValueError(
                "a comparison must not depend on the machine its runs happen to be on; write float32 or bfloat16"
            )
        return dtype


class Plan(Section):
    model: ComparedModel = ComparedModel()
    tasks: dict[Name, DataSpec] = Field(min_length=1)
    r: PositiveInt = Field(default=8, description="LoRA-equivalent rank of every method")
    target_modules: str | list[str] = "all-linear"
    target_parameters: list[str] | None = Field(default=None, description="stacked weights of experts to adapt as well")
    methods: dict[Name, dict[str, Any] | None] = Field(min_length=1)
    headroom: list[Annotated[StrictInt, Field(ge=2, le=1024)]] = Field(
        default=[2, 4], description="multiples of r that LoRA is run at"
    )
    headroom_of: list[Name] = Field(default=["lora"], description="methods whose headroom is measured")
    baseline: Name = Field(default="lora", description="what the others are held against")
    primary: list[tuple[Name, Name]] = Field(
        default=[],
        description="the pairs that the comparison is made for, decided before it runs: a family of tests of their own",
    )
    contrasts: list[tuple[Name, Name]] = Field(
        default=[],
        description="pairs such as [cps-lora, cps-lora-random]: the first over the second",
    )
    learning_rates: LearningRates
    seeds: list[Seed] = Field(min_length=2, description="fresh ones, the same for every method")
    training: TrainingSection = Field(
        default=TrainingSection(), description="a recipe's, but for learning_rate and seed: each run has its own"
    )
    evaluation: EvaluationSection = EvaluationSection()
    published: Published = Published()
    watch: dict[Name, DataSpec] = Field(
        default={}, description="tasks whose test split is measured before and after each final run: what was forgotten"
    )
    statistics: Statistics = Statistics()
    export: StrictBool = Field(default=True, description="of our methods' final runs, as plain LoRA")
    allow_mixed_machines: StrictBool = Field(
        default=False, description="runs of other processors, torch versions or dtypes in one table, which then says so"
    )
    notes: list[str] = Field(default=[], description="what a reader of the report must know before its numbers")
    folder: PathName | None = Field(default=None, description="results/<name of the plan> when left out")

    @field_validator("tasks")
    @classmethod
    def _no_file_of_ours(cls, tasks: dict[str, DataSpec]) -> dict[str, DataSpec]:
        taken = [name for name in tasks if PurePath(name).suffix in OWN_SUFFIXES]
        if taken:
            raise ValueError(
                f"{taken[0]} would be a folder among the comparison's files; give the task a name without "
                f"{PurePath(taken[0]).suffix}"
            )
        return tasks

    @field_validator("training", mode="before")
    @classmethod
    def _same_for_all(cls, value: Any) -> Any:
        for key in CHOSEN_BY_RUN:
            if isinstance(value, dict) and key in value:
                raise ValueError(f"{key} is no key of a plan's training; it belongs in {CHOSEN_FOR_ALL[key]}")
        return value

    @field_serializer("training")
    def _without_chosen(self, training: TrainingSection) -> dict[str, Any]:
        return training.model_dump(mode="json", exclude=set(CHOSEN_BY_RUN))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in ("baseline", "headroom_of"):
            names = [self.baseline] if key == "baseline" else self.headroom_of if self.headroom else []
            missing = [name for name in names if name not in self.methods]
            if missing:
                raise ValueError(f"{key} names {', '.join(missing)}, which is not among the methods")
        for key, pairs in (("primary", self.primary), ("contrasts", self.contrasts)):
            strangers = [name for pair in pairs for name in pair if name not in {*self.methods, *self.headroom_labels}]
            if strangers:
                raise ValueError(f"{key} names {', '.join(strangers)}, which is not among the methods")
            idle = [pair[0] for pair in pairs if pair[0] == pair[1]]
            if idle or len(set(pairs)) < len(pairs):
                raise ValueError(f"{key} holds a method against itself" if idle else f"{key} holds a pair twice")
        taken = [name for name in self.headroom_labels if name in self.methods]
        if taken:
            raise ValueError(f"methods.{taken[0]} has the name of a headroom run; give it another")
        if len(set(self.headroom)) < len(self.headroom):
            raise ValueError("headroom holds the same multiple twice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds holds the same seed twice; each must be a run of its own")
        if shared := set(self.learning_rates.seeds) & set(self.seeds):
            raise ValueError(
                f"seed {min(shared)} chooses the learning rates and is among the final seeds; the final "
                "ones must be fresh (learning_rates.seeds)"
            )
        return self

    @property
    def headroom_labels(self) -> dict[str, tuple[str, int]]:
        """Of each headroom run, the method and the multiple of r."""
        return {
            f"{name}-r{self.r * multiple}": (name, multiple) for name in self.headroom_of for multiple in self.headroom
        }


class Entry(Section):
    """One line of the comparison, its own rank solved and its parameters counted."""

    label: str
    role: Role = "method"
    method: MethodSection
    budget_label: str | None = Field(default=None, description="admits another budget, and is shown in every table")
    grid: list[Rate]
    trainable: Annotated[int, Field(ge=0)]
    budget: PositiveInt = Field(description="trainable parameters of LoRA at the plan's r")

    @property
    def budget_ratio(self) -> float:
        return self.trainable / self.budget


class ResolvedPlan(Section):
    """What a comparison's folder keeps beside its records: enough to schedule, and to report, without a model."""

    name: str
    plan: Plan
    entries: list[Entry]

    def entry(self, label: str) -> Entry:
        return next(entry for entry in self.entries if entry.label == label)

    @property
    def rivals(self) -> list[Entry]:
        """Those whose verdict is wanted: every method but the baseline, without the headroom runs."""
        return [c for c in self.entries if c.role == "method" and c.label != self.plan.baseline]


def distinct_grid(grid: list[float]) -> list[float]:
    if len(set(grid)) < 3:
        raise ValueError(f"needs at least 3 different learning rates, got {grid}; with fewer nobody was tuned")
    return sorted(set(grid))
