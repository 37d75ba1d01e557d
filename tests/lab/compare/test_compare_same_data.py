"""Runs on other data than the rest are not compared, whether a file changed before them or after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localora.lab.compare.comparison import compare_records
from localora.lab.compare.guards import check_same_data
from localora.lab.compare.plan import PlanError, ResolvedPlan
from localora.lab.compare.runs import RunSpec, final_run
from localora.lab.compare.store import Outcome, Store, Tasks, write_text
from localora.lab.training.record import Evaluation, Items
from planned import BEST, fill, leave, record_of, resolved_plan

HASHES = {"train": "a", "validation": "b", "test": "c"}


def finals(resolved: ResolvedPlan) -> list[RunSpec]:
    return [final_run(resolved, "sums", c, BEST, seed) for c in resolved.entries for seed in (0, 1)]


def on(spec: RunSpec, **hashes: str) -> Outcome:
    record = record_of(spec, 1.0)
    return Outcome("finished", record.model_copy(update={"data": record.data | {"hashes": HASHES | hashes}}))


def test_the_same_splits_may_be_compared(model_folder: Path) -> None:
    specs = finals(resolved_plan(model_folder))
    check_same_data({spec: on(spec) for spec in specs}, {"sums": HASHES, "unseen": {"train": "z"}})


def test_a_run_on_another_split_is_named(model_folder: Path) -> None:
    specs = finals(resolved_plan(model_folder))
    outcomes = {spec: on(spec) for spec in specs} | {specs[2]: on(specs[2], test="changed")}
    with pytest.raises(PlanError) as caught:
        check_same_data(outcomes)
    assert caught.value.problems == [
        "sums/g-lora/seed-0-rate-0.01: its test examples of sums differ from sums/lora/seed-0-rate-0.01, so they "
        "cannot be compared; remove the folders of the runs on the wrong data, or start anew in another folder (--out)"
    ]


def test_data_that_changed_since_all_runs_are_noticed_before_the_next(model_folder: Path) -> None:
    spec = finals(resolved_plan(model_folder))[0]
    with pytest.raises(PlanError, match=r"its train examples of sums differ from the data as they are now"):
        check_same_data({spec: on(spec)}, {"sums": HASHES | {"train": "new"}})


@pytest.mark.parametrize("digests", [("x", "x"), ("x", "y")])
def test_a_report_pairs_published_items_of_one_file_only(
    model_folder: Path, tmp_path: Path, digests: tuple[str, str]
) -> None:
    plan: dict[str, Any] = {"methods": {"lora": None, "rslora": None}, "published": {"tasks": ["boolq"]}}
    resolved, store = resolved_plan(model_folder, **plan), Store(tmp_path)
    fill(store, resolved, {"lora": [1.0, 1.1], "rslora": [1.0, 1.1]})
    for spec in finals(resolved):
        items = Items(ids=["i", digests[spec.label == "rslora"]], loss_sums=[1.0, 1.0], tokens=[1, 1])
        found = Evaluation(
            loss=1.0, examples=2, score_name="accuracy", score=0.5, score_examples=2, right=[True, False], items=items
        )
        tasks = Tasks(measured=resolved.plan.published, tasks={"boolq:likelihood": found})
        write_text(store.path(spec) / "tasks.json", tasks.model_dump_json())
    if digests[0] == digests[1]:
        assert len(compare_records(store).tables) == 3
        return
    with pytest.raises(PlanError, match=r"rslora/seed-0.*: its published examples of boolq:likelihood differ from"):
        compare_records(store)


def test_a_key_that_is_new_since_a_record_was_made_is_at_its_default(model_folder: Path, tmp_path: Path) -> None:
    methods: dict[str, Any] = {"lora": None, "g-lora": {"local_size": 0.5}}
    spec = finals(resolved_plan(model_folder, methods=methods))[2]
    record = record_of(spec, 1.0)
    del record.recipe["method"]["frozen_rank"]
    leave(Store(tmp_path), spec, record)
    assert Store(tmp_path).read(spec).status == "finished"
    methods["g-lora"]["frozen_rank"] = 1
    with pytest.raises(PlanError, match=r"another plan \(method\.frozen_rank was 0, is 1\)"):
        Store(tmp_path).read(finals(resolved_plan(model_folder, methods=methods))[2])
