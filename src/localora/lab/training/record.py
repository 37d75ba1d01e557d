"""The record of a run: all that tables, pictures and later comparisons are made from."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from localora.errors import LocaloraError
from localora.files import write_file
from localora.lab.data.example import Example, item_id
from localora.lab.machine import describe_machine
from localora.lab.recipe.methods import METHODS

RECORD_FORMAT: Literal[1] = 1  # raise it when a field changes its meaning
PACKAGES = ("localora", "torch", "transformers", "peft", "accelerate", "safetensors")


class RecordError(LocaloraError, ValueError):
    """A file that is no readable run record."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Point(Part):
    step: int
    loss: float


class Curve(Part):
    train: list[Point] = []
    held_out: list[Point] = []  # on validation examples; step 0 is the untrained model


class Items(Part):
    """Each test item, in the order they were measured in: arrays, so that records stay small."""

    ids: list[str]  # see localora.lab.data.example.item_id
    loss_sums: list[float]  # nats over the item's completion tokens
    tokens: list[int]  # how many these are; sum(loss_sums) / sum(tokens) is the loss

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if not len(self.ids) == len(self.loss_sums) == len(self.tokens):
            raise ValueError(f"{len(self.ids)} ids, {len(self.loss_sums)} loss_sums, {len(self.tokens)} tokens")
        return self

    @classmethod
    def of(cls, examples: Sequence[Example], loss_sums: Sequence[float], tokens: Sequence[int]) -> Self:
        return cls(
            ids=[item_id(example) for example in examples],
            loss_sums=[round(nats, 6) for nats in loss_sums],
            tokens=list(tokens),
        )


class Evaluation(Part):
    """What the model knows of the test split."""

    loss: float  # nats per completion token
    examples: int  # test examples the loss is over
    score_name: str | None = None  # None: the task has no scorer
    score: float | None = None
    score_examples: int = 0
    right: list[bool] = []  # which of them, for paired comparisons
    items: Items | None = None  # None in records made before items were kept; `right` has the same order
    seconds: float = 0.0


class Parameters(Part):
    trainable: int
    lora_same_r: int = Field(ge=1)  # plain LoRA at the recipe's r, on the same layers; shares are of it
    base: int
    stored: int | None = None  # of the adapter in the end, frozen terms too; None where nothing but `trainable` is kept
    rank: int | None = None  # of the update as plain LoRA, where we know it


class RunRecord(Part):
    format: Literal[1] = RECORD_FORMAT
    status: Literal["running", "finished", "failed"] = "running"
    error: str | None = None
    recipe: dict[str, Any]
    seed: int
    versions: dict[str, str] = Field(default_factory=lambda: package_versions())
    machine: dict[str, Any] = Field(default_factory=lambda: describe_machine())
    dtype: str | None = None  # in which the base model's weights were; None in records made before it was kept
    dtype_reason: str | None = None  # why in that
    data: dict[str, Any]  # name, sizes and hashes of the splits
    parameters: Parameters
    before: Evaluation
    after: Evaluation | None = None
    curve: Curve = Curve()
    seconds: dict[str, float] = {}  # by stage; a resumed run adds up
    peak_memory_mib: float = 0.0
    placement: dict[str, Any] | None = None  # the calibration report, or None where nothing was calibrated
    repartitions: list[dict[str, Any]] = []  # one entry an event, see localora.lifecycle.repartition.RepartitionEvent
    ranks: dict[str, int] | None = None  # by layer, where the method chose them in training (AdaLoRA)
    export: dict[str, Any] | None = None
    resumed_at: list[int] = []  # steps at which the run was taken up again

    @field_validator("recipe")
    @classmethod
    def _names_its_method(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        method = recipe.get("method")
        if not isinstance(method, dict) or method.get("name") not in METHODS:
            raise ValueError("method.name is missing or no method of ours")
        return recipe

    @property
    def method(self) -> str:
        return str(self.recipe["method"]["name"])

    def facts(self) -> list[str]:
        """What its adapter's model card says, a fact a row.

        Paths are given by their last part: the rest is of one machine, and cards are published.
        """
        model = str(self.recipe["model"]["name"])
        name = Path(model).name if Path(model).expanduser().exists() else model
        facts = [
            f"base model {name}",
            f"data {self.data['name']}, {self.data['sizes']['train']} examples",
            f"{self.recipe['training']['steps']} steps, seed {self.seed}",
        ]
        if self.after is not None:
            facts.append(
                f"loss {self.before.loss:.4f} before, {self.after.loss:.4f} after: nats per completion token, on "
                f"{self.after.examples} test examples"
            )
        return [fact.replace("|", "/") for fact in facts]

    def write(self, path: Path) -> None:
        """A reader, or a crash, sees the old record or the new one.

        Raises:
            StorageError: the disk is full, read-only or gone.
        """
        write_file(path, _compact(json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False)) + "\n")

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read a record.

        Raises:
            RecordError: the file is missing, damaged, or of another format.
        """
        try:
            text = path.read_bytes()
        except OSError as error:
            raise RecordError(f"{path} cannot be read: {error.strerror}") from error
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: str | bytes, source: Path) -> RunRecord:
        """The record that a text from `source` holds.

        Raises:
            RecordError: it is damaged, or of another format.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "file"
            message = f"{source} is no run record of format {RECORD_FORMAT} ({where}: {first['msg']})"
            raise RecordError(message) from None


def package_versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _compact(text: str) -> str:
    """Indented JSON with each list of plain values on one line. No string holds a line break, so none is changed."""
    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", lambda found: "[" + re.sub(r",\n\s+", ", ", found[1]) + "]", text)
