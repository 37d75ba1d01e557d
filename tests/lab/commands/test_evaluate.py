"""`localora evaluate`: what it prints and writes is what was measured, and its errors are one line with the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import published_files
import tiny_runs
from localora import CpsLoraConfig
from localora.cli import app
from localora.lab.commands import evaluate as command
from localora.lab.evaluation.tasks import evaluate_tasks, load_tasks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_files.write_tasks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.save_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    config = CpsLoraConfig(
        r=4, clusters=2, placement="random", init_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM"
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "80"})


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")


def test_an_adapter_on_three_tasks(adapter: Path, base: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "results.json"
    result = call(adapter, "--tasks", "arc_easy,boolq:llm-adapters", "--tasks", "code", "--data", data,
                  "--dtype", "fp32",
                  "--max-new-tokens", "4", "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert (written["base"], written["adapter"]) == (str(base), str(adapter))
    assert written["adapter_config"] == "CpsLoraConfig"
    assert written["settings"]["allow_code_execution"] is False
    assert written["dtype"] == {"name": "float32", "reason": "asked for"}
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    names = ["arc_easy", "boolq:llm-adapters", "code"]
    expected = evaluate_tasks(model, AutoTokenizer.from_pretrained(base), load_tasks(names, data), max_new_tokens=4)
    for found, wanted in zip(written["tasks"], expected, strict=True):
        assert (found["task"], found["value"], found["data_hash"]) == (wanted.task, wanted.value, wanted.data_hash)
        assert [item["right"] for item in found["items"]] == [item.right for item in wanted.items]
        assert found["reference_loss"] == pytest.approx(wanted.reference_loss)
        assert f"{wanted.reference_loss:.3f} [" in result.stdout
    value, (low, high) = expected[0].value, expected[0].interval or (0.0, 0.0)
    assert f"{100 * (value or 0):.1f} [{100 * low:.1f}, {100 * high:.1f}]" in result.stdout
    assert result.stdout.count("not run") == 2
    assert result.stdout.count("running generated code is off; allow it with --allow-code-execution") == 1
    assert str(out) in result.stdout


def test_settings_reach_the_measurement(base: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def measure(model: Any, tokenizer: Any, tasks: Any, **settings: Any) -> list[Any]:
        seen.update(settings, items=[len(task.examples) for task in tasks], dtype=str(model.dtype))
        return []

    monkeypatch.setattr(command, "evaluate_tasks", measure)
    result = call(base, "--tasks", "arc_easy", "--data", data, "--examples", "2", "--allow-code-execution",
                  "--batch-size", "3", "--dtype", "bfloat16", "--max-new-tokens", "7")  # fmt: skip
    assert result.exit_code == 0, result.output
    del seen["progress"]
    assert seen == {
        "batch_size": 3, "max_new_tokens": 7, "allow_code_execution": True, "items": [2], "dtype": "torch.bfloat16",
    }  # fmt: skip


@pytest.mark.parametrize("tasks", ["", ",,"])
def test_no_task_is_an_error(base: Path, data: Path, tasks: str) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(base), "--tasks", tasks, "--data", str(data)])
    assert result.exit_code == 2
    assert "--tasks names no task" in result.output


def test_errors_name_the_remedy(base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load_adapted", lambda *_: pytest.fail("loaded a model first"))
    refused(call(base, "--tasks", "bolq", "--data", data), "no task is called 'bolq'; known: commonsense, math")
    refused(call(base, "--tasks", "boolq:rationale", "--data", data), "it has likelihood, llm-adapters")
    refused(call(base, "--tasks", "piqa", "--data", data), "put it at commonsense/piqa_test.jsonl")
    refused(call(base, "--tasks", "boolq", "--data", tmp_path / "no"), "does not exist")
    refused(call(base, "--tasks", "boolq", "--data", data, "--out", tmp_path), "is the results' file")
    (tmp_path / "file").write_text("")
    unwritable = tmp_path / "file" / "r.json"
    refused(call(base, "--tasks", "boolq", "--data", data, "--out", unwritable), "another folder with --out")


def test_an_adapter_without_its_base(adapter: Path, data: Path, tmp_path: Path) -> None:
    for path in adapter.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    refused(call(tmp_path, "--tasks", "boolq", "--data", data), "names no base model; give it with --base")


def test_help_names_every_task() -> None:
    text = call("--help").stdout
    for word in ("commonsense", "winogrande", "singleeq", "mbpp", "boolq:llm-adapters", "--allow-code-execution"):
        assert word in text
