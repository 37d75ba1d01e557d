"""Runs of another processor, torch or dtype are not put into one table, unless the plan says so; then the page does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localora.lab.compare.comparison import compare_records
from localora.lab.compare.plan import PlanError
from localora.lab.compare.runs import final_run
from localora.lab.compare.same_machine import NOW, check_same_machine, describe, made_on
from localora.lab.compare.store import Outcome, Store
from localora.lab.report.comparison.sections import problems
from localora.lab.training.record import RunRecord
from planned import BEST, fill, leave, record_of, resolved_plan

OURS = {"processor": "x86_64", "cpu": "One 9000", "instructions": ["AVX512", "avx512_bf16"], "gpu": None}
PLAN: dict[str, Any] = {"methods": {"lora": None, "rslora": None}}
LOSSES = {"lora": [1.0, 1.1], "rslora": [1.0, 1.1]}


def filled(folder: Path, model: Path, changed: dict[str, Any], **plan: Any) -> Store:
    """A comparison made on OURS, but for the last run, whose record has `changed` keys."""
    resolved, store = resolved_plan(model, **PLAN, **plan), Store(folder)
    fill(store, resolved, LOSSES)
    for path in folder.rglob("run.json"):
        record = RunRecord.read(path)
        record.model_copy(update={"machine": OURS, "dtype": "float32", "versions": {"torch": "2.9"}}).write(path)
    spec = final_run(resolved, "sums", resolved.entry("rslora"), BEST, 1)
    known = {"machine": OURS, "dtype": "float32", "versions": {"torch": "2.9"}}
    leave(store, spec, record_of(spec, 1.0, 1.1).model_copy(update=known | changed))
    return store


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            {"machine": OURS | {"cpu": "Other 1"}},
            r"processor One 9000 \(AVX512 avx512_bf16\).*processor Other 1 \(AVX512 avx512_bf16\)",
        ),
        ({"machine": OURS | {"instructions": ["AVX2"]}}, r"One 9000 \(AVX512 avx512_bf16\).*One 9000 \(AVX2\)"),
        ({"machine": OURS | {"gpu": "Card"}}, r"One 9000 .*processor Card"),
        ({"versions": {"torch": "2.8"}}, r"torch 2\.9.*torch 2\.8"),
        ({"dtype": "bfloat16"}, r"dtype float32.*dtype bfloat16"),
    ],
)
def test_a_table_does_not_mix_them_and_names_both(
    tmp_path: Path, model_folder: Path, changed: dict[str, Any], named: str
) -> None:
    store = filled(tmp_path, model_folder, changed)
    with pytest.raises(PlanError, match=named) as caught:
        compare_records(store)
    assert "sums/rslora/seed-1-rate-0.01 with" in str(caught.value)


def test_a_plan_may_allow_it_and_the_page_says_so(tmp_path: Path, model_folder: Path) -> None:
    store = filled(tmp_path, model_folder, {"dtype": "bfloat16"}, allow_mixed_machines=True)
    assert problems(compare_records(store)) == [
        "MIXED MACHINES, as the plan allows: One 9000 (AVX512 avx512_bf16), torch 2.9, bfloat16; "
        "One 9000 (AVX512 avx512_bf16), torch 2.9, float32"
    ]


def test_alike_and_unknown_ones_may_be_compared_and_the_unknown_are_counted(tmp_path: Path, model_folder: Path) -> None:
    assert problems(compare_records(filled(tmp_path / "a", model_folder, {}))) == []
    old = {"machine": {"processor": "x86_64"}, "dtype": None}
    comparison = compare_records(filled(tmp_path / "b", model_folder, old))
    assert problems(comparison) == ["1 run(s) do not say on which processor they were made"]
    assert "a processor that was not recorded, torch 2.9, float32" in comparison.machines


def test_this_machine_is_held_against_the_runs_that_are_there(model_folder: Path) -> None:
    resolved = resolved_plan(model_folder, **PLAN)
    spec = final_run(resolved, "sums", resolved.entries[0], BEST, 0)
    record = record_of(spec, 1.0).model_copy(update={"machine": OURS})
    here = made_on(record) | {"processor": "Mine (AVX2)"}
    with pytest.raises(PlanError, match=rf"One 9000.*{NOW} with processor Mine \(AVX2\)"):
        check_same_machine({spec: Outcome("finished", record)}, here)
    del here["dtype"]  # not known before a model is loaded
    assert check_same_machine({spec: Outcome("finished", record)}, here | made_on(record)) == []
    assert describe(made_on(record)).startswith("One 9000 (AVX512 avx512_bf16), torch 2")
