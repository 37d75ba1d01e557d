"""Recipes: defaults, overrides, and one plain line for every mistake."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from localora import CpsLoraConfig, GLoraConfig
from localora.adapter.config import LocalizedConfig
from localora.adapter.options import options_of
from localora.errors import ConfigError
from localora.lab.commands.quickstart import METHODS as QUICKSTART_METHODS
from localora.lab.commands.quickstart import quickstart_recipe
from localora.lab.recipe.file import load_recipe, method_section, validate_recipe
from localora.lab.recipe.methods import CpsLoraMethod, GLoraMethod
from localora.lab.recipe.peft_methods import MethodBase
from localora.lab.recipe.schema import SECTIONS, RecipeError, describe_keys, with_folder

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))
MINIMAL = "data: {task: arithmetic}\nmethod: {name: cps-lora}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_minimal_recipe_gets_every_default(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert (recipe.model.name, recipe.model.dtype) == ("smollm2-135m", "auto")
    assert isinstance(recipe.method, CpsLoraMethod)
    assert (recipe.method.r, recipe.method.resolved_alpha, recipe.method.clusters) == (16, 32.0, 4)
    assert recipe.output.folder == "runs/mine"


def test_alpha_follows_r_unless_given() -> None:
    def alpha(**method: Any) -> float:
        values = {"data": {"task": "facts"}, "method": {"name": "lora", **method}}
        return validate_recipe(values).method.resolved_alpha

    assert (alpha(r=8), alpha(r=8, alpha=5)) == (16.0, 5.0)


def test_overrides_are_yaml_and_reach_sections_the_file_lacks(tmp_path: Path) -> None:
    overrides = ["training.steps=7", "training.learning_rate=3e-4", "method.target_modules=[q_proj, v_proj]"]
    recipe = load_recipe(write(tmp_path, MINIMAL), [*overrides, "output.export=false"])
    assert (recipe.training.steps, recipe.training.learning_rate) == (7, 3e-4)
    assert recipe.method.target_modules == ["q_proj", "v_proj"]
    assert recipe.output.export is False


def test_a_whole_section_can_be_replaced(tmp_path: Path) -> None:
    text = "data: {task: arithmetic}\nmethod: {name: cps-lora, clusters: 3}\n"
    recipe = load_recipe(write(tmp_path, text), ["method={name: g-lora, local_size: 0.5}"])
    assert isinstance(recipe.method, GLoraMethod)
    assert recipe.method.local_size == 0.5


@pytest.mark.parametrize(("given", "name"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_a_dtype_may_be_abbreviated(tmp_path: Path, given: str, name: str) -> None:
    assert load_recipe(write(tmp_path, MINIMAL), [f"model.dtype={given}"]).model.dtype == name


def test_the_folder_argument_goes_before_the_recipes_own(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "output: {folder: there}\n")
    assert load_recipe(path).output.folder == "there"
    assert load_recipe(path, folder="here").output.folder == "here"


MISTAKES: dict[str, tuple[str, list[str], str]] = {
    "misspelt key": (
        MINIMAL + "training: {learing_rate: 1}",
        [],
        "training.learing_rate: unknown key; did you mean 'learning_rate'?",
    ),
    "misspelt section": (MINIMAL + "trainin: {steps: 1}", [], "trainin: unknown key; did you mean 'training'?"),
    "misspelt data key": (
        "data: {task: arithmetic, dificulty: 2}\nmethod: {name: lora}",
        [],
        "data.dificulty: unknown key; did you mean 'difficulty'?",
    ),
    "misspelt method key": (
        "data: {task: facts}\nmethod: {name: cps-lora, cluster: 2}",
        [],
        "method.cluster: unknown key; did you mean 'clusters'?",
    ),
    "nothing close": (MINIMAL + "output: {zzz: 1}", [], "output.zzz: unknown key; known: folder, export, plots"),
    "another method's key": (
        "data: {task: facts}\nmethod: {name: g-lora, clusters: 2}",
        [],
        "method.clusters: no setting of g-lora (it belongs to cps-lora, hybrid); known: name, r, target_modules",
    ),
    "unknown method": (
        "data: {task: facts}\nmethod: {name: glora}",
        [],
        "method.name: 'glora' is no method; did you mean 'g-lora'?; known: lora, rslora, dora",
    ),
    "no method name": ("data: {task: facts}\nmethod: {r: 2}", [], "method.name: missing; choose one of lora, rslora"),
    "no method": ("data: {task: facts}", [], "method: missing"),
    "no data source": ("data: {}\nmethod: {name: lora}", [], "needs exactly one of task, path, hub"),
    "rank 0": (
        "data: {task: facts}\nmethod: {name: lora, r: 0}",
        [],
        "method.r: should be greater than or equal to 1, got 0",
    ),
    "K below 1": ("data: {task: facts}\nmethod: {name: cps-lora, clusters: 0}", [], "method.clusters: should be"),
    "local_size outside": (
        "data: {task: facts}\nmethod: {name: g-lora, local_size: 1.5}",
        [],
        "method.local_size: should be less than or equal to 1, got 1.5",
    ),
    "a number in words": (MINIMAL, ["training.steps=many"], "training.steps: should be a valid integer, got 'many'"),
    "no dtype": (
        MINIMAL,
        ["model.dtype=int8"],
        "model.dtype: should be 'auto', 'float32', 'bfloat16' or 'float16', got 'int8'",
    ),
    "half a step": (MINIMAL, ["training.steps=2.5"], "training.steps: should be a valid integer, got 2.5"),
    "no equals sign": (MINIMAL, ["training.steps"], "--set training.steps: write it as section.key=value"),
    "into a value": (MINIMAL, ["data.task.x=1"], "--set data.task.x=1: task is a value, not a section"),
    "bad YAML in an override": (MINIMAL, ["method={name"], "--set method={name: the value is not valid YAML"),
    "bad YAML": ("data: {task", [], "line 1: not valid YAML"),
    "a rank beyond every matrix": (
        MINIMAL,
        ["method.r=100000"],
        "r: should be less than or equal to",
    ),
    "the same key twice": (MINIMAL + "data: {task: facts}", [], "key data is given twice"),
    "a list": ("- data", [], "must hold sections (model, data, method"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_has_its_line(tmp_path: Path, mistake: str) -> None:
    text, overrides, expected = MISTAKES[mistake]
    with pytest.raises(RecipeError, match=re.escape(expected)) as caught:
        load_recipe(write(tmp_path, text), overrides)
    assert "pydantic" not in str(caught.value)
    assert len(caught.value.problems) == 1


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, MINIMAL + "training: {stepz: 1, batch_size: 0}\noutput: {plot: true}"))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "training.batch_size",
        "training.stepz",
        "output.plot",
    ]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: embedded null byte"):
        load_recipe("a\0b.yaml")
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: cannot be read"):
        load_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("method", "config"),
    [(GLoraMethod(name="g-lora"), GLoraConfig()), (CpsLoraMethod(name="cps-lora"), CpsLoraConfig())],
)
def test_keys_and_defaults_are_those_of_the_python_configs(method: MethodBase, config: LocalizedConfig) -> None:
    own = {"name", "target_modules", "calibration_steps"}  # the recipe's alone, or set otherwise on purpose
    defaults = {key: value for key, value in method.model_dump().items() if key not in own}
    assert defaults == {key: getattr(config, key) for key in defaults}
    recipe_keys = {key for key, option in options_of(type(config)).items() if option.recipe}
    assert type(method).model_fields.keys() - own == recipe_keys - {"target_modules", "global_share"} | (
        {"global_share"} if method.name == "g-lora" else set()
    )


@pytest.mark.parametrize("name", ["lora", "rslora", "g-lora", "cps-lora", "hybrid"])
def test_a_recipe_names_stacks_of_experts_as_the_configs_do(name: str) -> None:
    stacks = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    section = method_section({"name": name, "target_modules": [], "target_parameters": stacks})
    config = section.peft_config(seed=0, steps=200)
    assert config.target_parameters == stacks
    assert not config.target_modules


@pytest.mark.parametrize("name", ["dora", "pissa", "lora-ga", "adalora", "gralora", "bd-lora", "miss", "hira"])
def test_what_peft_cannot_put_on_experts_is_refused(name: str) -> None:
    section = method_section({"name": name, "target_parameters": ["mlp.experts.down_proj"]})
    with pytest.raises(ConfigError, match=f"{name}: PEFT puts it on linear layers only; leave target_parameters out"):
        section.peft_config(seed=0, steps=200)


@pytest.mark.parametrize("r", [1, 3, 8, 64])
@pytest.mark.parametrize("name", ["lora", "rslora", "g-lora", "cps-lora", "hybrid"])
def test_alpha_is_twice_r_in_recipes_and_in_python(name: str, r: int) -> None:
    config = method_section({"name": name, "r": r, "target_modules": ["x"]}).peft_config(seed=0, steps=200)
    if name == "rslora":
        assert config.lora_alpha / math.sqrt(config.r) == pytest.approx(2 * math.sqrt(r))
    elif name == "lora":
        assert config.lora_alpha / config.r == 2
    else:
        assert config.layer_scale("x") == 2
        python = GLoraConfig(r=r) if name == "g-lora" else CpsLoraConfig(r=r)
        assert python.layer_scale("x") == 2


@pytest.mark.parametrize(
    ("name", "key", "bad", "message"),
    [
        ("g-lora", "local_size", 1.5, "less than or equal to 1"),
        ("cps-lora", "clusters", 128, "less than or equal to 127"),
        ("hybrid", "global_share", 1, "less than 1"),
        ("cps-lora", "repartition", [0.5, 1.5], "less than or equal to 1"),
        ("g-lora", "frozen_rank", -1, "greater than or equal to 0"),
        ("g-lora", "frozen", "there", "should be 'factors' or 'merged'"),
        ("cps-lora", "alpha", 0, "greater than 0"),
        ("cps-lora", "alpha", float("inf"), "finite"),
    ],
)
def test_ranges_of_our_methods_are_those_of_their_configs(name: str, key: str, bad: object, message: str) -> None:
    with pytest.raises(RecipeError, match=f"method.{key}.*{message}"):
        method_section({"name": name, key: bad})
    if name != "hybrid":  # its share lies strictly between, the config's need not
        with pytest.raises(ConfigError, match=key):
            (GLoraConfig if name == "g-lora" else CpsLoraConfig)(**{key: bad})


def test_the_key_reference_names_every_key() -> None:
    described = {line.split(":")[0] for line in describe_keys()}
    known = {f"{name}.{key}" for name, sections in SECTIONS.items() for s in sections for key in s.model_fields}
    assert described == known


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_says_what_it_is(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    load_recipe(path)


def test_there_is_a_recipe_for_every_method() -> None:
    assert {load_recipe(path).method.name for path in RECIPES} >= {"lora", "g-lora", "cps-lora", "hybrid"}  # type: ignore[attr-defined]


def test_the_quickstart_recipe_is_the_first_run_of_the_quickstart() -> None:
    recipe = next(load_recipe(path) for path in RECIPES if path.stem == "quickstart")
    assert with_folder(quickstart_recipe(QUICKSTART_METHODS[0], Path("any")), "same") == with_folder(recipe, "same")


def test_an_error_comes_whole_from_another_process() -> None:
    error = RecipeError("mine.yaml", "r: missing", "seeds: missing")
    assert str(pickle.loads(pickle.dumps(error))) == "mine.yaml: r: missing\nmine.yaml: seeds: missing"
