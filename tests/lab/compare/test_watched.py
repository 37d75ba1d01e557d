"""Tasks that a plan watches: measured on the base model once, and on what each final run made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import published_files
from localora.lab.compare import other_tasks, run_one
from localora.lab.compare.execute import _watched_before
from localora.lab.compare.guards import check_data
from localora.lab.compare.plan import PlanError, ResolvedPlan
from localora.lab.compare.runs import Job, RunSpec, final_run, job_text
from localora.lab.compare.schedule import schedule
from localora.lab.compare.store import Store
from localora.lab.data.batches import encode_examples
from localora.lab.data.load import load_task
from localora.lab.data.split import subset
from localora.lab.evaluation.likelihood import mean_loss
from localora.lab.model.adapted import load_adapted
from localora.lab.recipe.data_spec import DataSpec
from localora.lab.recipe.schema import with_folder
from planned import BEST, resolved_plan

WATCH = {"names": {"task": "facts", "test_size": 6}}


def final(resolved: ResolvedPlan, seed: int = 0) -> RunSpec:
    return final_run(resolved, "sums", resolved.entry("lora"), BEST, seed)


def test_the_change_is_that_of_the_saved_adapter(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved, store = resolved_plan(model_folder, watch=WATCH, methods={"lora": None}), Store(tmp_path)
    spec = final(resolved)
    run_one.run(with_folder(spec.recipe, store.path(spec) / "run"), None, spec.published, spec.watch, keep_adapter=True)
    outcome = store.read(spec)
    assert outcome.status == "finished"
    assert outcome.watched is not None
    before, after = (found["names"] for found in (outcome.watched.before, outcome.watched.after))

    data = DataSpec.model_validate(WATCH["names"])
    questions = subset(load_task(data).test, spec.recipe.evaluation.examples, data.seed)
    for found, name, base in (
        (before, str(model_folder), None),
        (after, str(store.path(spec) / "run" / "adapter"), str(model_folder)),
    ):
        loaded = load_adapted(name, base)
        encoded = encode_examples(questions, loaded.tokenizer, spec.recipe.training.max_length)
        assert found.loss == pytest.approx(mean_loss(loaded.model, encoded, 4), abs=1e-5)
    assert abs(after.loss - before.loss) > 1e-3
    assert before.items is not None
    assert after.items is not None
    assert before.items.ids == after.items.ids

    # The next run is told what the base model is worth, and does not load it again.
    known = _watched_before(schedule(resolved, lambda s: store.read(s)), store, final(resolved, 1))
    assert known == {}  # the run is not among those that the plan has need of yet: no rate is chosen
    told = Job.model_validate_json(job_text(spec, None, outcome.watched.before)).watched_before
    loaded_from: list[str] = []
    original = other_tasks.load_adapted

    def noted(name: str, *arguments: object, **more: object) -> object:
        loaded_from.append(name)
        return original(name, *arguments, **more)

    monkeypatch.setattr(other_tasks, "load_adapted", noted)
    again = other_tasks.measure_watched(spec.recipe, run_one.RunFolder(store.path(spec) / "run"), spec.watch, told)
    assert loaded_from == [str(store.path(spec) / "run" / "adapter")]
    assert again.before == outcome.watched.before
    assert again.after["names"].loss == pytest.approx(after.loss)


def test_a_run_whose_watched_tasks_are_not_measured_is_not_over(model_folder: Path, tmp_path: Path) -> None:
    resolved, store = resolved_plan(model_folder, watch=WATCH, methods={"lora": None}), Store(tmp_path)
    plain = resolved_plan(model_folder, methods={"lora": None})
    run_one.run(with_folder(final(plain).recipe, store.path(final(plain)) / "run"), None, keep_adapter=True)
    assert store.read(final(plain)).status == "finished"
    assert Store(tmp_path).read(final(resolved)).status == "missing"


def test_what_is_watched_is_held_out(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} and {i} is", "completion": f" {2 * i}"} for i in range(40)]
    data = published_files.write_rows(tmp_path / "data.jsonl", rows)
    others = [{"prompt": f"Say {i}", "completion": " b"} for i in range(9)]
    other = published_files.write_rows(tmp_path / "other.jsonl", others)
    tasks = {"sums": {"path": str(data), "validation_size": 6, "test_size": 6}}
    check_data(resolved_plan(model_folder, tasks=tasks, watch=WATCH))
    copied = {"path": str(other), "test_path": str(data)}
    with pytest.raises(PlanError, match=r"tasks\.sums: 34 prompt\(s\) .* occur in the test split of watch\.copied"):
        check_data(resolved_plan(model_folder, tasks=tasks, watch={"copied": copied}))
