"""The benchmark's statistics on samples whose ratios are known, its resumption, its page; and one toy run of it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.speed import curves, figures, training
from benchmarks.speed.__main__ import check_dtype, main
from benchmarks.speed.curves import _fit, _time_terms
from benchmarks.speed.methods import BY_KEY, OURS, with_shared_weights
from benchmarks.speed.page import NOT_MEASURED, write_page
from benchmarks.speed.store import Cells, StoreError, run_section
from benchmarks.speed.targets import MAIN_CELL, Target, all_targets, targets
from benchmarks.speed.timing import Spread, interleave, overhead_ratio, ratio
from benchmarks.speed.workloads import DTYPES, Settings, smollm2

from localora.lab.model import dtype as dtype_module
from tiny_models import tiny_llama

CPU = torch.device("cpu")


def test_ratios_are_taken_within_a_round() -> None:
    theirs, floor = [1.0, 2.0, 10.0], [0.5, 1.0, 5.0]  # a machine that slows down by the round
    ours = [0.75, 1.5, 7.5]
    assert ratio(ours, theirs) == Spread(0.75, 0.75, 0.75)
    assert overhead_ratio(ours, theirs, floor) == Spread(0.5, 0.5, 0.5)
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(2.0, 3.0, 4.0)
    assert overhead_ratio(ours, [1.0, 0.9, 10.0], floor) is None  # noise: theirs below the floor


def test_calls_take_turns_and_warm_up() -> None:
    order: list[str] = []
    taken = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU, warmups=1)
    assert "".join(order) == "abababab"
    assert [len(samples) for samples in taken.values()] == [3, 3]


def planted(step: dict[str, float]) -> dict[str, Any]:
    rows = [{"method": key, "seconds": [value, 2 * value], "trainable": 1} for key, value in step.items()]
    return {"load": [0.1, 0.2], "commit": "abc", "rows": rows}


def test_targets_say_by_how_much_they_are_missed() -> None:
    cells = {MAIN_CELL: planted({"floor": 0.7, "peft-lora": 1.0, "lora": 0.8, "g-lora": 0.9, "cps-lora-4": 0.91})}
    found = {target.figure: target.row() for target in all_targets({"training": {"cells": cells}})}
    assert found["training step, LoRA as placement"] == [
        "training step, LoRA as placement", "<= 0.85", "0.800", MAIN_CELL, "met",
    ]  # fmt: skip
    assert found["training step, G-LoRA"][-1] == "missed by 0.020"
    assert found["overhead beyond the frozen base, LoRA as placement"][2] == "0.333"  # 0.1 / 0.3
    page = targets({"training": {"cells": cells}})
    assert "| training step, G-LoRA | <= 0.88 | 0.900 |" in page
    assert page.count("| <= ") == 6
    assert page.endswith("injection into 30 layers; load.")  # named, since they were not measured
    assert targets({}) == "None of the targets was measured here."


def test_the_worst_value_decides() -> None:
    row = Target("figure", 1.0, (("here", 0.9), ("there", 1.25), ("elsewhere", 1.0))).row()
    assert row == ["figure", "<= 1.00", "1.250", "there", "missed by 0.250 (2 of 3 within)"]


def test_slopes_are_found_again_and_carried_on() -> None:
    rows = [
        {"block_parameters": P, "tokens": T, "seconds": [0.1 + 2e-9 * P + 3e-12 * P * T]}
        for P in (1e6, 1e7, 1e8)
        for T in (128, 512)
    ]
    value, miss = _fit(rows, _time_terms, lambda row: row["seconds"][0], {"block_parameters": 1e9, "tokens": 1024})
    assert value == pytest.approx(0.1 + 2.0 + 3.072)
    assert miss < 1e-9


@pytest.mark.slow
def test_blocks_predict_whole_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def block(hidden: int, tokens: int) -> list[dict[str, Any]]:
        size = {"hidden": hidden, "tokens": tokens, "block_parameters": 13 * hidden**2, "r": curves.RANK}
        cost = {"seconds": [1e-12 * tokens * 13 * hidden**2], "saved_bytes": 2 * tokens * hidden}
        return [{"method": key, **size, **cost} for key in curves.PREDICTED]

    def placing(hidden: int) -> list[dict[str, Any]]:
        size = {"hidden": hidden, "tokens": 512, "block_parameters": 13 * hidden**2}
        return [{"what": what, **size, "seconds": [1e-9 * 13 * hidden**2]} for what in curves.PLACED.values()]

    cells = {f"hidden {hidden}": {"rows": block(hidden, 512)} for hidden in (512, 1024, 2048)}
    cells |= {f"tokens {tokens}": {"rows": block(1024, tokens)} for tokens in (128, 256)}
    cells |= {f"placing {hidden}": {"rows": placing(hidden)} for hidden in (512, 1024)}
    monkeypatch.setattr(curves, "MODELS", ("llama-3-8b",))
    text = curves.predict(cells)
    # 32 blocks of 218,103,808 weights, 2048 tokens; 2 x 2048 x 4096 bytes a block
    (line,) = [line for line in text.splitlines() if "| G-LoRA |" in line]
    assert "| 14.3 s (fit ±0%) | 0.5 GiB (fit ±0%) | 7 s | 15.0 GiB |" in line
    assert "320.0 MiB" in line  # Adam: 8 x 41,943,040
    (floor,) = [line for line in text.splitlines() if "| frozen base |" in line]
    assert floor.endswith("| – | – | – | – | – |")  # noqa: RUF001
    assert not curves.predict({key: cells[key] for key in ("hidden 512", "placing 512")})  # one size has no slope


def settings(out: Path) -> Settings:
    return Settings(out, rounds=2, tiny=True)


def test_a_stopped_run_goes_on_and_another_machine_is_refused(tmp_path: Path) -> None:
    measured: list[str] = []

    def cell(name: str) -> list[dict[str, Any]]:
        measured.append(name)
        if name == "fails" and measured.count(name) == 1:
            raise KeyboardInterrupt
        return [{"method": name}]

    cells = {name: (lambda name=name: cell(name)) for name in ("first", "fails", "last")}
    with pytest.raises(KeyboardInterrupt):
        run_section("some", cells, settings(tmp_path), again=False, say=lambda _: None)
    run_section("some", cells, settings(tmp_path), again=False, say=lambda _: None)
    assert measured == ["first", "fails", "fails", "last"]
    path = tmp_path / "some.json"
    result = json.loads(path.read_text())
    assert list(result["cells"]) == ["first", "fails", "last"]
    assert result["environment"]["versions"]["torch"] == torch.__version__

    result["environment"]["threads"] += 1
    del result["cells"]["last"]
    path.write_text(json.dumps(result))
    with pytest.raises(StoreError, match=r"another machine.*--again"):
        run_section("some", cells, settings(tmp_path), again=False, say=lambda _: None)
    run_section("some", cells, settings(tmp_path), again=True, say=lambda _: None)
    assert measured[4:] == ["first", "fails", "last"]
    run_section("some", {"fails": cells["fails"]}, settings(tmp_path), again=True, say=lambda _: None)
    assert measured[7:] == ["fails"]
    assert set(json.loads(path.read_text())["cells"]) == {"first", "fails", "last"}


def test_no_cell_is_begun_after_the_time_that_was_given(tmp_path: Path) -> None:
    measured: list[str] = []
    said: list[str] = []
    cells = {"slow": lambda: measured.append("slow") or []}
    late = replace(settings(tmp_path), until=time.monotonic() - 1)
    run_section("some", cells, late, again=False, say=said.append)
    assert (measured, said) == ([], ["some: slow: no time left; the same command goes on from here"])
    run_section("some", cells, settings(tmp_path), again=False, say=said.append)
    assert measured == ["slow"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
def test_the_command_for_a_card_measures_eager_and_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path on a processor, as toys: ours beside PEFT's LoRA, DoRA and GraLoRA."""
    theirs = {"peft-lora", "peft-dora", "peft-gralora"}
    assert {*theirs, "lora", "g-lora", "cps-lora-4", "hybrid"} <= {*training.COMPILED}
    monkeypatch.setattr(training, "COMPILED", ("peft-lora", "g-lora"))  # a compiler takes its time
    recipe = (Path(__file__).parents[2] / "Makefile").read_text().partition("\nbench-cuda:")[2].splitlines()[1]
    words = recipe.partition("benchmarks.speed ")[2].removesuffix(" $(BENCH_ARGS)").replace("cuda", "cpu").split()
    monkeypatch.setattr("sys.argv", ["speed", *words, "--tiny", "--rounds", "1", "--out", str(tmp_path)])
    main()
    eager, compiled = (json.loads((tmp_path / f"{name}.json").read_text())["cells"] for name in ("training", "compile"))
    assert [cell for cell in compiled if "SmolLM2" in cell]
    assert [cell for cell in compiled if "Llama" in cell]
    assert all("bf16" in cell for cell in (*eager, *compiled))
    for cell in eager.values():
        assert {row["method"] for row in cell["rows"] if min(row["seconds"]) > 0} >= {*theirs, *OURS}
    for cell in compiled.values():
        assert [row["method"] for row in cell["rows"] if min(row["seconds"]) > 0] == ["peft-lora", "g-lora"]


def test_bfloat16_that_the_machine_emulates_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def section(*cells: str) -> dict[str, Cells]:
        return {"training": {cell: lambda: pytest.fail("measured") for cell in cells}}

    monkeypatch.setattr(dtype_module, "times_float32", lambda dtype: 12.0)
    with pytest.raises(
        StoreError, match=r"2 cells are in bfloat16 \(training: a, bf16, .*takes 12\.0 times.*--emulated"
    ):
        check_dtype(section("a, fp32", "a, bf16", "growth of r"), CPU)
    check_dtype(section("a, fp32"), CPU)
    monkeypatch.setattr(dtype_module, "times_float32", lambda dtype: 0.5)
    check_dtype(section("a, bf16"), CPU)


@pytest.mark.slow
def test_a_toy_run_reaches_the_page_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    workload = smollm2(4, 128).sized(settings(tmp_path))
    cells = {MAIN_CELL: lambda: training._time(workload, DTYPES["bf16"], settings(tmp_path))}
    run_section("training", cells, settings(tmp_path / "results" / "cpu"), again=False, say=lambda _: None)
    page = tmp_path / "page.md"
    page.write_text(
        "Top\n<!-- speed training -->\n<!-- end -->\nBetween\n<!-- speed files -->\nold\n<!-- end -->\nBottom\n"
    )
    write_page(page, tmp_path / "results")
    text = page.read_text()
    assert text.startswith("Top\n<!-- speed training -->\n\n#### cpu\n\n**SmolLM2-135M, 4 x 128 tokens, bf16**")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(BY_KEY)
    trainable = {
        line.rpartition(" | ")[2] for line in lines if line.startswith(("| PEFT LoRA ", "| CPS", "| LoRA", "| G-"))
    }
    assert trainable == {"7,424 |"}  # equal parameters
    assert f"Between\n<!-- speed files -->\n\n{NOT_MEASURED}\n\n<!-- end -->\nBottom\n" in text
    write_page(page, tmp_path / "results")
    assert page.read_text() == text

    page.write_text("<!-- speed nothing -->\n<!-- end -->")
    with pytest.raises(StoreError, match="'nothing'"):
        write_page(page, tmp_path / "results")


def test_methods_share_the_base_and_leave_it_alone() -> None:
    base = tiny_llama().requires_grad_(False)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adapted = BY_KEY["cps-lora-2"].wrap(base, 4)
    assert not any("localized_" in name for name in base.state_dict())
    weights = {p.data_ptr() for p in adapted.parameters()}
    assert {p.data_ptr() for p in base.parameters()} <= weights
    assert {p.data_ptr() for p in with_shared_weights(base).parameters()} <= weights
    torch.testing.assert_close(base.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("key", OURS)
def test_ours_train_what_lora_trains(key: str) -> None:
    base = tiny_llama().requires_grad_(False)
    count = {
        name: sum(p.numel() for p in BY_KEY[name].wrap(base, 2).parameters() if p.requires_grad)
        for name in (key, "peft-lora")
    }
    assert count[key] == count["peft-lora"]


def test_figures_of_files_memory_and_calibration() -> None:
    files = [{"method": "peft-lora", "file_bytes": 100}, {"method": "g-lora", "file_bytes": 104}]
    assert figures.file_ratio(files, "g-lora") == 1.04
    peaks = [
        {"method": "peft-lora", "peaks": [{"peak_mib": 100}, {"peak_mib": 90}, {"peak_mib": 200}]},
        {"method": "lora", "peaks": [{"peak_mib": 50}, {"peak_mib": 20}, {"peak_mib": 80}]},
        {"method": "g-lora", "peaks": [{"peak_mib": 500, "allocator_mib": 10}]},
    ]
    assert figures.peak_ratio(peaks, "lora") == 0.5
    assert figures.peak_mib(peaks[2]) == 10
    calibration = [
        {"method": "peft-lora", "step_seconds": [1.0, 2.0]},
        {"method": "g-lora", "batch_seconds": [1.5, 3.0]},
    ]
    assert figures.calibration_ratio(calibration, "g-lora").median == 1.5
