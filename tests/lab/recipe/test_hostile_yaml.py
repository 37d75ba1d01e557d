"""YAML that surprises: read as something else than it looks, or too large for the parser."""

from __future__ import annotations

from pathlib import Path

import pytest

from localora.lab.recipe.file import load_recipe, validate_recipe
from localora.lab.recipe.schema import RecipeError

BASE = "data: {task: arithmetic}\nmethod: {name: lora}\n"
HOSTILE = {
    "octal": ("training: {steps: 010}", "010 is read as octal or base 60"),
    "octal with sign": ("training: {seed: +017}", "is read as octal"),
    "base 60": ("training: {steps: 1:30}", "1:30 is read as octal or base 60"),
    "base 60 fraction": ("training: {learning_rate: 1:30.5}", "is read as octal or base 60"),
    "infinite": ("training: {learning_rate: .inf}", r"training.learning_rate: .*finite number"),
    "no number": ("training: {weight_decay: .nan}", r"training.weight_decay: .*finite number"),
    "half a surrogate pair": (r'model: {name: "\ud800"}', "half of a surrogate pair"),
    "nested deeply": ("model: " + "[" * 20_000 + "]" * 20_000, "nested too deeply"),
    "a number of 5,000 digits": ("training: {steps: " + "1" * 5000 + "}", "not valid YAML"),
    "steps without end": (
        "training: {steps: 1180591620717411303424}",
        "training.steps: should be less than 2147483648",
    ),
    "yes as a rate": ("training: {learning_rate: yes}", "training.learning_rate: must be a number; yes, no"),
    "yes as a size": ("evaluation: {examples: yes}", "evaluation.examples: .*integer, got True"),
    "a null byte in a path": (r'output: {folder: "runs/a\0b"}', "output.folder: holds a null byte"),
    "a null byte in a model's path": (r'model: {name: "a\0b"}', "model.name: holds a null byte"),
    "a date that is none": ("model: {name: 2026-02-31}", "not valid YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_with_the_file(tmp_path: Path, name: str) -> None:
    text, said = HOSTILE[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE + text + "\n")
    with pytest.raises(RecipeError, match=rf"recipe.yaml: .*{said}"):
        load_recipe(path)


@pytest.mark.parametrize("value", ["010", "1:30", ".inf", "[" * 20_000, "1" * 5000, r'"\ud800"'])
def test_refused_in_an_override(tmp_path: Path, value: str) -> None:
    (tmp_path / "recipe.yaml").write_text(BASE)
    with pytest.raises(RecipeError, match=r"--set training.learning_rate=|training.learning_rate: .*finite"):
        load_recipe(tmp_path / "recipe.yaml", [f"training.learning_rate={value}"])


def test_what_only_looks_like_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text('data: {task: arithmetic, seed: 0}\nmethod: {name: lora, dropout: 0.05}\nmodel: {name: "010"}\n')
    recipe = load_recipe(path, ["training.learning_rate=1e-3", "training.warmup=0"])
    assert (recipe.data.seed, recipe.model.name, recipe.training.learning_rate) == (0, "010", 1e-3)


def test_numbers_from_python_are_finite_too() -> None:
    with pytest.raises(RecipeError, match="finite"):
        validate_recipe(
            {"data": {"task": "facts"}, "method": {"name": "lora"}, "training": {"learning_rate": float("inf")}}
        )
