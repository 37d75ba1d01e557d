"""A comparison in one file: what was collected says what the folders said, and the runs go on from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from localora.lab.compare.collected import NAME, collect
from localora.lab.compare.comparison import compare_records
from localora.lab.compare.plan import PlanError, ResolvedPlan
from localora.lab.compare.runs import final_run
from localora.lab.compare.schedule import schedule
from localora.lab.compare.store import Store
from planned import BEST, fill, leave, record_of, resolved_plan

ANSWERS = {"lora": [[True, False], [True, True]], "g-lora": [[False, False], [True, False]]}


@pytest.fixture(scope="module")
def resolved(model_folder: Path) -> ResolvedPlan:
    return resolved_plan(model_folder)


@pytest.fixture
def store(resolved: ResolvedPlan, tmp_path: Path) -> Store:
    fill(Store(tmp_path), resolved, {"lora": [1.0, 1.1], "g-lora": [1.2, 1.3]}, ANSWERS)
    return Store(tmp_path)


def without_folders(folder: Path) -> Store:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    return Store(folder)


def test_nothing_is_lost_with_the_folders(store: Store) -> None:
    before = compare_records(store)
    collect(store.folder)
    after = compare_records(without_folders(store.folder))
    assert sorted(path.name for path in store.folder.iterdir()) == ["plan.json", NAME]
    assert after.tables == before.tables
    assert after.costs == before.costs
    assert after.choices == before.choices
    assert after.outcomes == before.outcomes
    assert not after.incomplete


def test_a_line_a_run(store: Store) -> None:
    collect(store.folder)
    lines = [json.loads(line) for line in (store.folder / NAME).read_text().splitlines()]
    assert len(lines) == 16
    assert [line["run"] for line in lines] == sorted(line["run"] for line in lines)
    assert all(line["files"].keys() == {"run/run.json", "update.json"} for line in lines)


def test_collecting_again_keeps_what_has_no_folder_any_more(store: Store) -> None:
    collect(store.folder)
    first = (store.folder / NAME).read_bytes()
    collect(without_folders(store.folder).folder)
    assert (store.folder / NAME).read_bytes() == first


def test_a_folder_stands_for_its_run(store: Store, resolved: ResolvedPlan) -> None:
    """A run that is made anew is not what was collected of it."""
    collect(store.folder)
    spec = final_run(resolved, "sums", resolved.entry("lora"), BEST, 0)
    again = without_folders(store.folder)
    again.path(spec).mkdir(parents=True)
    assert again.read(spec).status == "missing"
    leave(again, spec, record_of(spec, 1.0, loss=0.5))
    record = again.read(spec).record
    assert record is not None
    assert record.after is not None
    assert record.after.loss == 0.5
    collect(again.folder)
    kept = without_folders(again.folder).read(spec).record
    assert kept == record


def test_what_is_missing_is_still_due(store: Store, resolved: ResolvedPlan) -> None:
    spec = final_run(resolved, "sums", resolved.entry("g-lora"), BEST, 1)
    (store.path(spec) / "update.json").unlink()  # it was killed before its end
    collect(store.folder)
    state = schedule(resolved, without_folders(store.folder).read)
    assert state.due == [spec]
    assert len(state.finished) == 15


def test_a_failure_is_collected_too(store: Store, resolved: ResolvedPlan) -> None:
    spec = final_run(resolved, "sums", resolved.entry("g-lora"), BEST, 1)
    shutil.rmtree(store.path(spec))
    store.fail(spec, "the loss became nan", diverged=True)
    collect(store.folder)
    outcome = without_folders(store.folder).read(spec)
    assert (outcome.status, outcome.failure and outcome.failure.reason) == ("diverged", "the loss became nan")


@pytest.mark.parametrize(
    "line",
    [b"{", b"3", b'{"run": "a"}', b'{"run": "a", "files": []}', b"[" * 100_000, b'{"run": "\xff"}', b"9" * 5000, b"\0"],
)
def test_a_damaged_line_is_named(store: Store, resolved: ResolvedPlan, line: bytes) -> None:
    collect(store.folder)
    with (store.folder / NAME).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(PlanError, match=r"records.jsonl:17: holds no run .*put the file back, or take the line out"):
        schedule(resolved, without_folders(store.folder).read)


def test_a_file_that_was_cut_is_named_and_what_is_left_counts(store: Store, resolved: ResolvedPlan) -> None:
    collect(store.folder)
    path = store.folder / NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PlanError, match=r"records.jsonl:16: holds no run"):
        schedule(resolved, without_folders(store.folder).read)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    state = schedule(resolved, Store(store.folder).read)
    assert (len(state.finished), len(state.due)) == (15, 1)


def test_a_run_that_is_there_twice_is_named(store: Store, resolved: ResolvedPlan) -> None:
    collect(store.folder)
    path = store.folder / NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[2]]))
    with pytest.raises(PlanError, match=r"records.jsonl:17: sums/g-lora/.* is here for the second time"):
        schedule(resolved, without_folders(store.folder).read)


@pytest.mark.parametrize(
    "stranger",
    [
        {"run": "sums/lora/seed-9-rate-0.01", "files": {"update.json": {}}},
        {"run": "../../etc", "files": {"run/run.json": {"status": "finished"}}},
        {"run": "\ud800", "files": {"update.json": "\ud800"}},
        {"run": "a\0b", "files": {"failure.json": 3}},
    ],
)
def test_a_run_of_no_plan_changes_no_result(store: Store, resolved: ResolvedPlan, stranger: dict[str, object]) -> None:
    before = compare_records(store)
    collect(store.folder)
    with (store.folder / NAME).open("a") as file:
        file.write(json.dumps(stranger) + "\n")
    again = without_folders(store.folder)
    after = compare_records(again)
    assert (after.tables, after.choices, after.outcomes) == (before.tables, before.choices, before.outcomes)
    collect(again.folder)
    assert len((again.folder / NAME).read_bytes().splitlines()) == 17
