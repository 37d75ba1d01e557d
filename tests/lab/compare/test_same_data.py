"""Runs on other data than the rest are not compared, whether a file changed before them or after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localora.lab.compare.comparison import compare_records
from localora.lab.compare.errors import PlanError
from localora.lab.compare.plan import ResolvedPlan
from localora.lab.compare.runs import RunSpec, final_run
from localora.lab.compare.same_data import check_same_data, check_same_version
from localora.lab.compare.store import Outcome, Store, Tasks, TaskScores, write_text
from planned import BEST, fill, leave, record_of, resolved_plan

HASHES = {"train": "a", "validation": "b", "test": "c"}


def finals(resolved: ResolvedPlan) -> list[RunSpec]:
    return [final_run(resolved, "sums", c, BEST, seed) for c in resolved.contenders for seed in (0, 1)]


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
        scores = TaskScores(
            task="boolq:likelihood", metric="accuracy", value=0.5, right=[True, False], loss=1.0, losses=[1.0, 1.0],
            data_hash=digests[spec.label == "rslora"],
        )  # fmt: skip
        write_text(
            store.path(spec) / "tasks.json", Tasks(measured=resolved.plan.published, tasks=[scores]).model_dump_json()
        )
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


@pytest.mark.parametrize(("value", "earlier"), [(0, False), (4, True)])
def test_a_key_that_is_gone_counts_where_it_did_something(
    model_folder: Path, tmp_path: Path, value: int, earlier: bool
) -> None:
    methods: dict[str, Any] = {"lora": None, "g-lora": {"local_size": 0.5}}
    resolved, store = resolved_plan(model_folder, methods=methods), Store(tmp_path)
    fill(store, resolved, {"lora": [1.0, 1.1], "g-lora": [1.0, 1.1]})
    spec = finals(resolved)[2]
    record = record_of(spec, 1.0)
    record.recipe["method"]["rewarm"] = value
    leave(store, spec, record)
    note = "1 run(s) are of an earlier version, whose methods had other keys (rewarm)"
    assert (note in compare_records(Store(tmp_path)).notes) == earlier


def test_records_of_a_method_with_other_keys_are_reported_and_not_added_to(model_folder: Path, tmp_path: Path) -> None:
    methods: dict[str, Any] = {"lora": None, "g-lora": {"local_size": 0.5}}
    resolved, store = resolved_plan(model_folder, methods=methods), Store(tmp_path)
    fill(store, resolved, {"lora": [1.0, 1.1], "g-lora": [1.0, 1.1]})
    spec = finals(resolved)[2]
    record = record_of(spec, 1.0)
    record.recipe["method"]["settle"] = 0.98
    leave(store, spec, record)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["contenders"][1]["method"]["settle"] = 0.98
    plan["plan"]["statistics"] |= {"draws": 5000, "seed": 0}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    comparison = compare_records(Store(tmp_path))
    assert "1 run(s) are of an earlier version, whose methods had other keys (settle)" in comparison.notes
    with pytest.raises(PlanError, match=r"g-lora/seed-0-rate-0\.01: made by an earlier version, .* had settle;"):
        check_same_version({spec: Store(tmp_path).read(spec)})
