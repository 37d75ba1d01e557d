"""The command line: its help is enough to use it, its errors are one line, its runs leave what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

import localora
import tiny_runs
from localora.cli import app
from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.methods import METHOD_CLASSES
from tiny_runs import METHODS, recipe_values, write_recipe


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.save_tiny_model(tmp_path_factory.mktemp("model"))


def call(*arguments: Sequence[str] | str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_version() -> None:
    assert call("--version").stdout == f"localora {localora.__version__}\n"


def test_help_lists_the_commands() -> None:
    text = call("--help").stdout
    for command in ("init", "keys", "train", "evaluate", "compare", "export", "inspect", "budget", "quickstart"):
        assert f"  {command}" in text


def test_init_prints_a_recipe_that_is_valid() -> None:
    printed = call("init").stdout
    recipe = validate_recipe(yaml.safe_load(printed))
    assert (recipe.method.name, recipe.model.dtype) == ("cps-lora", "auto")  # type: ignore[attr-defined]
    own = yaml.safe_load(printed.replace("  task:", "  # task:").replace("# path:", "path:"))
    assert validate_recipe(own).data.path == "mine.jsonl"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_init_to_a_full_disk_is_a_sentence() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "localora.cli", "init"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert "error: the recipe cannot be written: No space left on device\n" in result.stderr
    assert "Traceback" not in result.stderr


def test_keys_explain_the_recipe_section_by_section() -> None:
    everything = call("keys").stdout
    for key in ("method.local_size: 0.25", "training.learning_rate: 0.001", "data.path: not set", "model.dtype: auto"):
        assert f"\n{key}" in f"\n{everything}"
    one = call("keys", "training").stdout
    assert one in everything
    assert all(line.startswith("training.") for line in one.splitlines())
    methods = call("keys", "method").stdout
    assert all(f"\n{method} " in f"\n{methods}" for method in METHOD_CLASSES)
    assert "\ng-lora     A low rank on the whole matrix" in methods
    assert "\nlora-ga    factors that start along the gradient" in methods
    assert "(global_share, local_size)" in methods  # the keys that G-LoRA alone has
    assert "method.clusters: 4" in methods
    gralora = call("keys", "gralora").stdout
    assert "method.blocks: 2  (k of the k x k grid" in gralora  # of BD-LoRA the same key means another thing
    assert "method.clusters" not in gralora
    refused(call("keys", "glora"), "no section or method is called glora")


def test_the_help_of_train_fits_a_screen() -> None:
    lines = call("train", "--help").stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_words_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"_LOCALORA_COMPLETE": "complete_bash", "COMP_WORDS": "localora ev", "COMP_CWORD": "1"}
    result = CliRunner().invoke(app, [], prog_name="localora", env=environment)
    assert result.stdout.split() == ["evaluate"]


def test_a_shell_that_completes_does_not_wait_for_torch() -> None:
    environment = {"_LOCALORA_COMPLETE": "complete_bash", "COMP_WORDS": "localora train --resu", "COMP_CWORD": "2"}
    command = [sys.executable, "-X", "importtime", "-c", "from localora.cli import app; app(prog_name='localora')"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--resume"]
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "localora.cli" in imported
    assert not imported & {"torch", "peft", "transformers"}


@pytest.mark.parametrize("method", METHODS)
def test_train_and_what_it_prints(model_folder: Path, tmp_path: Path, method: str) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_values(model_folder, tmp_path / "unused", method))
    out = tmp_path / "run"
    result = call("train", recipe, "--out", out, "--set", "training.steps=2", "--set", "training.seed=5")
    assert result.exit_code == 0, result.output
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["seed"], record["recipe"]["training"]["steps"]) == ("finished", 5, 2)
    assert method in result.stdout
    assert f"{record['after']['loss']:.3f}" in result.stdout
    assert str(out / "run.json") in result.stdout
    assert not (tmp_path / "unused").exists()
    assert ("verified with stock PEFT" in result.stdout) == (method != "lora")


def test_export_of_a_trained_adapter(model_folder: Path, tmp_path: Path) -> None:
    values = recipe_values(model_folder, tmp_path / "run")
    values["output"]["export"] = False
    assert call("train", write_recipe(tmp_path / "r.yaml", values), "--set", "training.steps=2").exit_code == 0
    assert not (tmp_path / "run" / "lora").exists()
    result = call("export", tmp_path / "run" / "adapter", tmp_path / "plain")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "plain" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert "plain LoRA of rank 16 (exact), 2 layers" in result.stdout
    truncated = call("export", tmp_path / "run" / "adapter", tmp_path / "small", "--rank", "1")
    assert "rank 1 (truncated from 16), zero-padded to 8" in truncated.stdout


def test_export_errors_are_one_line(tmp_path: Path) -> None:
    refused(call("export", tmp_path / "nothing", tmp_path / "out"), "holds no adapter")


def test_a_typo_in_a_recipe(model_folder: Path, tmp_path: Path) -> None:
    values = recipe_values(model_folder, tmp_path / "run") | {"training": {"stepz": 3}}
    refused(
        call("train", write_recipe(tmp_path / "r.yaml", values)), "training.stepz: unknown key; did you mean 'steps'?"
    )


def test_a_typo_in_an_override(model_folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(model_folder, tmp_path / "run"))
    refused(call("train", recipe, "--set", "method.cluster=3"), "method.cluster: unknown key; did you mean 'clusters'?")


def test_several_problems_are_several_lines(model_folder: Path, tmp_path: Path) -> None:
    values = recipe_values(model_folder, tmp_path / "run") | {"training": {"stepz": 3, "batch_size": 0}}
    result = call("train", write_recipe(tmp_path / "r.yaml", values))
    refused(result, "training.batch_size: should be greater than or equal to 1, got 0")
    assert len(result.stderr.splitlines()) == 2


def test_a_folder_below_a_file(model_folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(model_folder, tmp_path / "run"))
    refused(call("train", recipe, "--out", recipe / "run"), "cannot write to")


def test_an_empty_data_set(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    values = recipe_values(model_folder, tmp_path / "run") | {"data": {"path": str(tmp_path / "empty.jsonl")}}
    refused(call("train", write_recipe(tmp_path / "r.yaml", values)), "empty.jsonl")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(tmp_path / "no-model", tmp_path / "run"))
    refused(call("train", recipe), "no-model")


def test_a_run_is_not_replaced_unasked(model_folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", recipe_values(model_folder, tmp_path / "run", "lora", steps=1))
    assert call("train", recipe).exit_code == 0
    refused(call("train", recipe), "already holds a run")
    assert call("train", recipe, "--overwrite").exit_code == 0


def test_budget_needs_no_weights_and_refuses_unknown_keys() -> None:
    text = call("budget", "--model", "llama-3-8b", "--method", "cps-lora", "--set", "clusters=8").stdout
    # r (m + n) over q, k, v, o, gate, up, down of 32 blocks
    lora = 16 * 32 * (2 * (4096 + 4096) + 2 * (1024 + 4096) + 3 * (14336 + 4096))
    assert f"{lora:,} (0.52% of the base; LoRA r 16: {lora:,})" in text
    assert "exported rank                      128 (exact: 128)" in text
    refused(call("budget", "--model", "llama-3-8b", "--set", "clusterz=8"), "did you mean 'clusters'?")
    unknown = call("budget", "--model", "llama-3-8b", "--method", "dora")
    assert unknown.exit_code == 2
    assert "'dora' is not one of" in unknown.stderr


def test_inspect_names_what_it_cannot_read(tmp_path: Path) -> None:
    refused(call("inspect", str(tmp_path / "nothing"), str(tmp_path / "out")), str(tmp_path / "nothing"))
