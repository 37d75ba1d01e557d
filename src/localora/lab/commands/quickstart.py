"""The quickstart: three methods at equal parameters, on the same model, data, seed and order of examples."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from transformers import PreTrainedModel

from localora.lab.data.load import load_task
from localora.lab.evaluation.generate import generate
from localora.lab.evaluation.score import ANSWER_COMPLETE
from localora.lab.model.adapted import load_adapted
from localora.lab.progress import Reporter, say
from localora.lab.recipe.file import validate_recipe
from localora.lab.recipe.schema import Recipe
from localora.lab.report.console import comparison_table, export_line
from localora.lab.report.pictures import draw_overview, draw_run
from localora.lab.run.train import train
from localora.lab.training.record import RunRecord

# recipes/quickstart.yaml is the CPS-LoRA run of this, for `localora train`; a test holds the two together.
BASE: dict[str, Any] = {
    "model": {"name": "smollm2-135m"},
    "data": {"task": "arithmetic", "difficulty": 2, "train_size": 1000},
    "training": {"steps": 24, "batch_size": 8, "learning_rate": 3e-3, "max_length": 256},
    "evaluation": {"examples": 40, "curve_examples": 16, "curve_points": 2, "batch_size": 40, "max_new_tokens": 32},
}
METHODS: tuple[dict[str, Any], ...] = (
    {"name": "cps-lora", "r": 8, "clusters": 2, "calibration_steps": 2, "sketch": 16},
    {"name": "g-lora", "r": 8, "calibration_steps": 2},
    {"name": "lora", "r": 8},
)
QUESTIONS = 4  # asked once more, of the export


def quickstart_recipe(method: dict[str, Any], folder: Path) -> Recipe:
    return validate_recipe(BASE | {"method": method, "output": {"folder": str(folder / method["name"])}})


def run_quickstart(folder: Path, console: Console) -> list[RunRecord]:
    """Train every method into `folder`, print the comparison and the path of a picture, return the records."""
    start = time.perf_counter()
    records: list[RunRecord] = []
    for method in METHODS:
        console.rule(method["name"], align="left")
        before = records[0].before if records else None  # the untrained model is the same for all
        recipe = quickstart_recipe(method, folder)
        records.append(train(recipe, overwrite=True, before=before, console=console))
        draw_run(recipe, records[-1])
        gc.collect()  # a Trainer holds its model in cycles, and the next run's peak memory is to be its own
    picture = folder / "quickstart.png"
    draw_overview({record.method: (record, folder / record.method / "adapter") for record in records}, picture)
    data = records[0].data
    console.print(comparison_table(records, f"{BASE['model']['name']}, {data['name']}, one seed"))
    for record in records:
        if record.export is not None:
            say(console, f"{record.method} as plain LoRA: {export_line(record.export)}")
    first = folder / records[0].method
    same_answers(records[0], first, console)
    say(console, f"pictures: {picture}, {first / 'placement.png'}")
    console.print(f"{time.perf_counter() - start:.0f} s in all", highlight=False)
    return records


def same_answers(record: RunRecord, folder: Path, console: Console) -> int:
    """Ask test questions of the adapter in `folder` and of its plain-LoRA export, which PEFT loads without our code.

    Prints the first question with both answers; returns how many of the QUESTIONS were answered alike, word for word.
    """
    recipe = Recipe.model_validate(record.recipe)
    examples = load_task(recipe.data).test[:QUESTIONS]
    answers = {}
    with Reporter(console).phase("asking the adapter and its export", brief=True):
        for kind in ("adapter", "lora"):
            loaded = load_adapted(str(folder / kind), recipe.model.name, getattr(torch, str(record.dtype)))
            answers[kind] = generate(
                cast(PreTrainedModel, loaded.model),
                loaded.tokenizer,
                examples,
                batch_size=QUESTIONS,
                max_new_tokens=recipe.evaluation.max_new_tokens,
                stop_pattern=ANSWER_COMPLETE,
            )
    same = sum(ours == plain for ours, plain in zip(*answers.values(), strict=True))
    lines = [
        f"one question, asked of {folder / 'adapter'} and of {folder / 'lora'}, which is plain LoRA to PEFT:",
        *examples[0].prompt.splitlines()[:-1],
        f"  adapter     {_in_one_line(answers['adapter'][0])}",
        f"  plain LoRA  {_in_one_line(answers['lora'][0])}",
        f"{same} of {len(examples)} questions are answered word for word alike",
    ]
    for line in lines:
        say(console, line)
    return same


def _in_one_line(text: str) -> str:
    return " / ".join(line.strip() for line in text.strip().splitlines())
