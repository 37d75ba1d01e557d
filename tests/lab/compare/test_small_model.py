"""The small model that plans/small-model.yaml adapts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.small_model import VOCABULARY, recipe, untrained

from localora.lab.compare.budgets import resolve
from localora.lab.compare.guards import check_data
from localora.lab.compare.plan_file import load_plan
from localora.lab.data.generated.registry import generate_task
from localora.lab.data.load import load_task
from localora.lab.model.base import load_base_model

PLANS = Path(__file__).parents[3] / "plans"
PLAN = PLANS / "small-model.yaml"


@pytest.mark.parametrize(("size", "weights"), [("small", 492_160), ("medium", 3_541_248)])
def test_untrained_it_knows_nothing_and_tokenizes_every_task(tmp_path: Path, size: str, weights: int) -> None:
    untrained(tmp_path, size)
    model, tokenizer = load_base_model(str(tmp_path))
    assert len(tokenizer) == VOCABULARY == model.config.vocab_size
    assert model.num_parameters() == weights
    splits, _ = generate_task("functions", 2, {"test": 20}, seed=1)
    texts = [example.prompt + example.completion for example in splits["test"]]
    for text in texts:
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokens) == text
        assert len(tokens) < len(text) / 2  # byte pairs, not letters
    batch = tokenizer(texts[0], return_tensors="pt")
    with torch.no_grad():
        loss = model(**batch, labels=batch["input_ids"]).loss.item()
    assert abs(loss - 6.24) < 0.1  # log 512: every token as likely as any other


def test_the_plan_adapts_what_is_trained_here_to_a_task_it_has_not_seen() -> None:
    plan = load_plan(PLAN)
    assert Path(plan.model.name) == Path("runs/small-model") / "trained" / "model"
    trained_on = recipe(Path("untrained"), Path("trained"), steps=1).data.task
    assert [task.task for task in plan.tasks.values()] == ["functions"] != [trained_on]


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_plan_is_one(path: Path, tmp_path: Path) -> None:
    untrained(tmp_path)
    model = load_plan(path).model.name
    modules = [] if model.startswith("runs/") else ["target_modules=[q_proj, v_proj]"]
    resolved = resolve(load_plan(path, [f"model.name={tmp_path}", *modules]), path.stem)
    assert {name for pair in resolved.plan.primary for name in pair} <= {c.label for c in resolved.entries}


def test_facts_are_learned_by_heart_on_top_of_others(tmp_path: Path) -> None:
    untrained(tmp_path)
    plan = load_plan(PLANS / "by-heart.yaml", [f"model.name={tmp_path}"])
    tasks = check_data(resolve(plan, "by-heart"))  # what is asked was trained on, and is not refused for it
    known = load_task(recipe(Path("untrained"), Path("trained"), task="by-heart").data)
    new = tasks["by-heart"]
    assert {e.prompt for e in new.test} < {e.prompt for e in new.train}
    assert len({e.prompt for e in new.train} & {e.prompt for e in known.train}) == 9  # by chance; of 500
