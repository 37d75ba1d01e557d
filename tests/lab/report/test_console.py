"""The closing table and lines say what the record says."""

from __future__ import annotations

import io

from rich.console import Console

from localora.lab.report.console import comparison_table, print_record
from localora.lab.training.record import Evaluation, Parameters, RunRecord


def record(method: str = "cps-lora", *, finished: bool = True) -> RunRecord:
    before, after = (
        Evaluation(loss=loss, examples=4, score_name="exact match", score=sum(right) / 4, score_examples=4, right=right)
        for loss, right in ((2.0, [True, False, False, False]), (1.5, [True, True, True, False]))
    )
    return RunRecord(
        recipe={
            "method": {"name": method},
            "model": {"name": "tiny"},
            "output": {"folder": "runs/x", "plots": True},
        },
        seed=0,
        data={"name": "toy", "sizes": {}, "hashes": {}},
        parameters=Parameters(trainable=2_442_240, lora_same_r=2_444_000, base=100_000),
        before=before,
        after=after if finished else None,
        seconds={"train": 61.7},
        peak_memory_mib=1536.0,
        export={
            "folder": "lora",
            "rank": 16,
            "delta_error": 0.0,
            "logit_error": 2e-6,
            "dtype": "float32",
            "verified": True,
        },
    )


def printed(thing: object) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_fits_80_columns_and_holds_the_numbers() -> None:
    text = printed(comparison_table([record(), record("g-lora", finished=False)], "title"))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "cps-lora 2,442,240 99.9% 2.000 > 1.500 1 > 3 of 4 62 s 1.5 GiB" in rows
    assert "g-lora 2,442,240 99.9% - - 62 s 1.5 GiB" in rows


def test_what_events_add_is_said_below_the_table() -> None:
    with_events = record()
    with_events.parameters.stored, with_events.parameters.rank = 7_326_720, 48
    text = " ".join(printed(comparison_table([with_events, record("lora")], "title")).split())
    assert "cps-lora stores 7,326,720 parameters, rank 48; lora stores 2,442,240 parameters" in text


def test_a_task_without_a_score_has_no_column_for_it() -> None:
    plain = record()
    plain.before = Evaluation(loss=2.0, examples=4)
    plain.after = Evaluation(loss=1.5, examples=4)
    assert "match" not in printed(comparison_table([plain], "title"))


def test_the_closing_lines_say_where_everything_is() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_record(record(), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "runs/x/lora (rank 16, verified with stock PEFT: dW differs by 0e+00, logits by 2e-06 of the largest" in text
    assert "runs/x/loss.png, runs/x/placement.png" in text
    assert "runs/x/run.json" in text
