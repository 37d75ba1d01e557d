"""The `data` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from localora.lab.recipe.section import PathName, PositiveInt

Files = PathName | Annotated[list[PathName], Field(min_length=1)]


class DataSpec(BaseModel):
    """Where examples come from: exactly one of `task`, `path`, `hub`. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["arithmetic", "by-heart", "facts", "functions"] | None = Field(None, description="a generated task")
    difficulty: PositiveInt = Field(1, description="generated tasks: steps (or hops) of the hardest problem")

    path: Files | None = Field(None, description="JSONL file, or a list to mix; the format is found from the keys")
    validation_path: Files | None = Field(None, description="likewise; default: split off the training file")
    test_path: Files | None = Field(None, description="likewise; default: split off the training file")

    hub: str | None = Field(None, description="Hugging Face Hub data set id")
    hub_config: str | None = Field(None, description="configuration of the Hub data set")
    train_split: str = "train"
    validation_split: str | None = Field(None, description="default: split off the training split")
    test_split: str | None = Field(None, description="default: split off the training split")
    prompt_column: str | None = None
    completion_column: str | None = None
    messages_column: str | None = None

    separator: str | None = Field(
        None,
        description="put between prompt and completion of user data; default: a newline where neither side "
        "of the seam has white space, else nothing",
    )
    seed: StrictInt = Field(0, ge=0, lt=2**32, description="of generation, of splitting, and of drawing subsets")
    train_size: PositiveInt | None = Field(
        None, description="generated tasks: default 2000; else at most so many, default all"
    )
    validation_size: PositiveInt | None = Field(None, description="default: generated 100; split off a tenth; file all")
    test_size: PositiveInt | None = Field(None, description="default: generated 200; split off a tenth; file all")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = [name for name in ("task", "path", "hub") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError(f"data needs exactly one of task, path, hub; got {sources or 'none of them'}")
        columns = ("prompt_column", "completion_column", "messages_column")
        groups = {
            "path": ("validation_path", "test_path"),
            "hub": ("hub_config", "validation_split", "test_split", *columns),
        }
        for source, keys in groups.items():
            stray = [key for key in keys if getattr(self, key) is not None]
            if stray and sources[0] != source:
                raise ValueError(f"{', '.join(stray)} belong to {source} data, but the data come from {sources[0]}")
        if (self.prompt_column is None) != (self.completion_column is None):
            raise ValueError("set both prompt_column and completion_column, or neither")
        if self.prompt_column is not None and self.messages_column is not None:
            raise ValueError("set prompt_column and completion_column, or messages_column, not both")
        return self

    @property
    def files(self) -> dict[str, list[str]]:
        """The JSONL files of each split that has its own."""
        given = {"train": self.path, "validation": self.validation_path, "test": self.test_path}
        return {split: [f] if isinstance(f, str) else list(f) for split, f in given.items() if f is not None}
