"""The Python blocks of the guides run as they are printed, on a small random model in the place of SmolLM2."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import localora.lab.model.base as base_module
from localora.lab.data.load import load_task
from localora.lab.recipe.data_spec import DataSpec
from localora.lab.recipe.file import load_recipe
from tiny_runs import save_tiny_model

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # transformers', on machines without a GPU

Load = Callable[..., tuple[Any, Any]]


def blocks(page: str, language: str = "python") -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Stands in for load_base_model: a new copy of one model at each call. The working directory is a new folder."""
    folder = save_tiny_model(tmp_path / "model")

    def load(*_: object) -> tuple[Any, Any]:
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    monkeypatch.setattr(base_module, "load_base_model", load)
    monkeypatch.chdir(tmp_path)
    return load


def encoded(tokenizer: Any) -> list[dict[str, list[int]]]:
    texts = [f"{i} + {i} = {2 * i}" for i in range(6)]
    return [{"input_ids": ids, "labels": list(ids)} for ids in tokenizer(texts)["input_ids"]]


def as_batches(rows: list[dict[str, list[int]]]) -> list[dict[str, torch.Tensor]]:
    return [{key: torch.tensor([value]) for key, value in row.items()} for row in rows]


def test_getting_started(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    """The steps lower the loss, and the plain LoRA that comes out computes what the adapter does."""
    names: dict[str, Any] = {}
    for block in blocks("getting-started.md"):
        exec(block, names)
    losses = [float(loss) for loss in re.findall(r"step \d: loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    plain, again, untrained = (model(**names["batch"]).logits for model in (names["plain"], names["again"], load()[0]))
    assert (plain - again).abs().max() < 1e-4
    assert (plain - untrained).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("trainers.md"))))
def test_trainers(number: int, load: Load) -> None:
    block = blocks("trainers.md")[number]
    if "import lightning" in block:
        pytest.importorskip("lightning")
    base, tokenizer = load()
    names: dict[str, Any] = {"base": base, "tokenizer": tokenizer, "rows": encoded(tokenizer)}
    exec(block, names)
    repartitioner = getattr(names.get("tuned"), "repartitioner", names.get("repartitioner"))
    if repartitioner:
        assert [event.step for event in repartitioner.events] == [4]
    else:
        (callback,) = (c for c in names["trainer"].callback_handler.callbacks if hasattr(c, "reports"))
        assert len(callback.reports["default"].layers) == 7
        assert any("train_loss" in entry for entry in names["trainer"].state.log_history)


def test_calibration(load: Load) -> None:
    base, tokenizer = load()
    names = {"base": base, "other_base": load()[0], "fresh_base": load()[0], "batches": as_batches(encoded(tokenizer))}
    lora = get_peft_model(load()[0], LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    lora.save_pretrained("my-trained-lora")
    for block in blocks("calibration.md"):
        exec(block, names)
    assert len(names["report"].layers) == 7  # type: ignore[attr-defined]


def test_readme(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("../README.md")
    exec(block, {})
    losses = [float(loss) for loss in re.findall(r"step \d: loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


def test_budget(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    exec("\n".join(blocks("budget.md")), {"base": load()[0], "other_base": load()[0]})
    lora, ours = map(int, capsys.readouterr().out.split("\n")[0].split())
    assert ours == pytest.approx(lora, rel=0.005)


@pytest.mark.slow
def test_events(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    base, tokenizer = load()

    def make_trainer(model: Any, callbacks: list[Any]) -> Trainer:
        collator = DataCollatorForSeq2Seq(tokenizer)
        args = TrainingArguments("out", max_steps=8, use_cpu=True, report_to=[])
        return Trainer(model, args, collator, train_dataset=encoded(tokenizer), callbacks=callbacks)

    exec("\n".join(blocks("events.md")), {"base": base, "make_trainer": make_trainer})
    text = capsys.readouterr().out
    assert "[25, 50, 75]" in text
    assert [int(step) for step in re.findall(r"event at step (\d+)", text)] == [2, 4, 6]
    assert "rank=64" in text  # as the page says


def test_own_data(load: Load, tmp_path: Path) -> None:
    """The recipe of the page is one, its lines are data of the format they stand for, and the code reads them."""
    recipe = load_recipe(write(tmp_path / "recipe.yaml", blocks("own-data.md", "yaml")[0]))
    (lines,) = blocks("own-data.md", "json")
    rows = [json.loads(line) for line in lines.splitlines()]
    more = [{**rows[0], "prompt": f"{number}. {rows[0]['prompt']}"} for number in range(20)]
    write(tmp_path / "mine.jsonl", "\n".join(json.dumps(row) for row in rows + more))
    task = load_task(recipe.data)
    assert (len(task.train), len(task.validation), len(task.test)) == (18, 2, 2)
    names = {"tokenizer": load()[1]}
    exec("\n".join(blocks("own-data.md")), names)
    assert len(names["rows"]) == 18
    hub = yaml.safe_load(blocks("own-data.md", "yaml")[1])
    assert DataSpec.model_validate(hub["data"]).hub == "openai/gsm8k"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
