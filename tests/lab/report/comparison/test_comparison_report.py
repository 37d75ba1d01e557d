"""The report, from records whose numbers are known: every number against one worked out by hand, every form of it."""

from __future__ import annotations

import csv
import io
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console

import browser
from localora.lab.compare.comparison import Comparison, Table, compare_records
from localora.lab.compare.headroom import headroom_sentence
from localora.lab.compare.runs import final_run, sweep_run
from localora.lab.compare.store import Store, Tasks, TaskScores
from localora.lab.report.comparison.console import print_comparison
from localora.lab.report.comparison.markdown import render_markdown
from localora.lab.report.comparison.text import headline, problems
from localora.lab.report.comparison.write import write_report
from planned import BEST, fill, leave, record_of, resolved_plan

LORA = (1.00, 1.02, 1.04)
DIFFERENCES = {  # of three seeds; mean, and standard deviation / sqrt(3) = standard error
    "lora": (0.0, 0.0, 0.0),
    "g-lora": (-0.050, -0.052, -0.048),  # -0.050 and 0.002 / sqrt(3)
    "tied": (0.001, 0.002, 0.000),
    "rslora": (0.050, 0.052, 0.048),
    "hybrid": (0.030, -0.030, 0.060),
    "lora-r8": (-0.020, -0.021, -0.019),
}
LOSSES = {label: [a + d for a, d in zip(LORA, ds, strict=True)] for label, ds in DIFFERENCES.items()}
HALF = [True] * 5 + [False] * 5
RIGHT = {label: [HALF] * 3 for label in DIFFERENCES} | {"g-lora": [[True] * 10] * 3}
METHODS: dict[str, Any] = {
    "lora": None,
    "g-lora": {"local_size": 0.5},
    "tied": {"name": "cps-lora", "clusters": 2},
    "rslora": None,
    "hybrid": {"clusters": 2, "budget_label": "a <b>label</b>"},
}
CONTRASTS = [["g-lora", "rslora"], ["tied", "lora"]]
T_TWO_DEGREES = 4.302653  # the 97.5 % point of Student's distribution with 2 degrees of freedom
PICTURES = ("differences", "learning_rates", "parameters", "costs")


def refuse(*arguments: object, **more: object) -> None:
    raise AssertionError("a report needs no model")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Comparison, Path]:
    """A complete comparison, reported with the model gone and every way to load or run one closed."""
    model, out = tmp_path_factory.mktemp("model") / "gone", tmp_path_factory.mktemp("comparison")
    shutil.copytree(model_folder, model)
    plan = resolved_plan(model, methods=METHODS, seeds=[0, 1, 2], headroom=[2], contrasts=CONTRASTS)
    shutil.rmtree(model)
    fill(Store(out), plan, LOSSES, RIGHT)
    with pytest.MonkeyPatch.context() as patch:
        for loader in (transformers.AutoModelForCausalLM, transformers.AutoConfig, transformers.AutoTokenizer):
            patch.setattr(loader, "from_pretrained", refuse)
        patch.setattr(torch.nn.Module, "__init__", refuse)
        return write_report(out), out


def table(comparison: Comparison, measure: str) -> Table:
    return next(table for table in comparison.tables if table.measure == measure)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_losses_agree_with_a_calculation_by_hand(written: tuple[Comparison, Path]) -> None:
    found = {row["method"]: row for row in rows(written[1] / "summary.csv") if row["measure"] == "test loss"}
    assert list(found) == list(DIFFERENCES)
    ours = found["g-lora"]
    assert float(ours["mean"]) == pytest.approx(0.97)  # of 0.95, 0.968 and 0.992
    assert float(ours["sd"]) == pytest.approx(((0.02**2 + 0.002**2 + 0.022**2) / 2) ** 0.5)
    assert float(ours["difference"]) == pytest.approx(-0.05)
    error = 0.002 / 3**0.5
    assert float(ours["low"]) == pytest.approx(-0.05 - T_TWO_DEGREES * error)
    assert float(ours["high"]) == pytest.approx(-0.05 + T_TWO_DEGREES * error)
    t = 0.05 / error
    p = 1 - t / (t * t + 2) ** 0.5  # two-sided, of 2 degrees of freedom
    assert float(ours["p"]) == pytest.approx(p)
    assert float(ours["p_holm"]) == pytest.approx(4 * p)  # the least of four methods'
    t = (0.005 - 0.001) / (0.001 / 3**0.5)  # from 0.001 to the margin
    assert float(found["tied"]["p_tie"]) == pytest.approx(4 * (1 - t / (t * t + 2) ** 0.5) / 2)
    assert (found["lora"]["difference"], found["lora"]["verdict"]) == ("", "")
    assert found["hybrid"]["budget_label"] == "a <b>label</b>"


def test_every_verdict_occurs(written: tuple[Comparison, Path]) -> None:
    judged = {line.contender.label: line.judged for line in table(written[0], "test loss").lines}
    assert {label: found.verdict for label, found in judged.items() if found} == {
        "g-lora": "better",
        "tied": "tie",
        "rslora": "worse",
        "hybrid": "undecided",
    }
    assert headline(written[0]) == "against lora, of 8 comparisons: better 1, tie 1, worse 1, undecided 5"


def test_scores_are_paired_by_item(written: tuple[Comparison, Path]) -> None:
    found = {line.contender.label: line for line in table(written[0], "exact match").lines}
    ours = found["g-lora"]
    assert (ours.mean, found["lora"].mean) == (1.0, 0.5)
    # Items differ by 0 or 1, five each, in all seeds alike: MS_N = 3 * 10 * 0.25 / 9, Var = MS_N / 30, t = 3, df = 9
    assert ours.judged is not None
    assert ours.judged.difference.se == pytest.approx((3 * 10 * 0.25 / 9 / 30) ** 0.5)
    assert ours.judged.difference.df == pytest.approx(9)
    assert ours.judged.p_holm == pytest.approx(4 * 0.0149564, rel=1e-4)
    assert ours.judged.verdict == "undecided"
    assert [m.exact for m in ours.mcnemar] == [2 * 0.5**5] * 3  # five right that LoRA has wrong, none the other way
    assert found["tied"].judged is not None
    assert found["tied"].judged.difference.mean == 0
    assert found["tied"].judged.verdict == "undecided"  # the same answers, but to ten items only


def test_contrasts_are_judged_among_themselves(written: tuple[Comparison, Path]) -> None:
    comparison, out = written
    found = {row["method"]: row for row in rows(out / "contrasts.csv") if row["measure"] == "test loss"}
    assert [(row["method"], row["over"]) for row in found.values()] == [("g-lora", "rslora"), ("tied", "lora")]
    ours = found["g-lora"]
    assert float(ours["difference"]) == pytest.approx(-0.1)  # -0.1, -0.104, -0.096: not over LoRA, which is 0.05 better
    error = 0.004 / 3**0.5
    assert float(ours["high"]) == pytest.approx(-0.1 + T_TWO_DEGREES * error)
    t = 0.1 / error
    assert float(ours["p_holm"]) == pytest.approx(2 * (1 - t / (t * t + 2) ** 0.5))  # of two pairs, not of four methods
    assert ours["verdict"] == "better"
    assert found["tied"]["verdict"] == "tie"
    assert len(rows(out / "contrasts.csv")) == 4  # for the losses and for the answers
    shown = "-0.1000 | [-0.1099, -0.0901]"
    assert f"| g-lora over rslora | better | {shown} |" in (out / "report.md").read_text(encoding="utf-8")
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "g-lora over rslora" in page
    said = io.StringIO()
    print_comparison(comparison, Console(file=said, width=100))
    assert "g-lora over rslora: -0.1000 [-0.1099, -0.0901], better" in said.getvalue()


def test_headroom_stands_by_every_table(written: tuple[Comparison, Path]) -> None:
    comparison, out = written
    sentence = headroom_sentence(table(comparison, "test loss").headroom, planned=True)
    assert sentence == (
        "Headroom, against the same method at the table's r: lora at r 8 -0.0200 (better): there is room for rank to "
        "matter."
    )
    none = headroom_sentence(table(comparison, "exact match").headroom, planned=True)
    assert none.endswith("so this regime CANNOT TELL rank-allocating methods apart.")
    report = (out / "report.md").read_text(encoding="utf-8")
    assert sentence in report
    assert none in report
    assert "not measured yet" in headroom_sentence([], planned=True)
    assert "ties may mean that rank does not matter" in headroom_sentence([], planned=False)


def test_the_markdown_shows_the_same_numbers(written: tuple[Comparison, Path]) -> None:
    report = (written[1] / "report.md").read_text(encoding="utf-8")
    assert "## sums: test loss (lower is better; a difference below 0.005 is a tie)" in report
    line = next(line for line in report.splitlines() if line.startswith("| g-lora |") and "better" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "g-lora", "better", "0.9700", "0.0211", "-0.0500", "[-0.0550, -0.0450]", "0.002", "1.000", "-", "0.01", "640",
        "100.0%",
    ]  # fmt: skip
    assert "| hybrid [a <b>label</b>] |" in report
    assert "| sums | g-lora | 12.5 | 4.0 | 512 | - | 3.0 | 2.0 |" in report  # what comes before the first step counts
    assert "| sums | lora | 12.5 | 4.0 | 512 | 4 | 3.0 | 2.0 |" in report  # LoRA's exported rank is its own
    assert "| sums | lora | 0.01 | 0.01 to 0.01 (x 1) | 0.01 of 0.001, 0.01, 0.1 |" in report
    for name in PICTURES:
        assert f"({name}.png)" in report


def test_every_run_is_in_the_csv(written: tuple[Comparison, Path]) -> None:
    found = rows(written[1] / "runs.csv")
    assert len(found) == 6 * 3 + 6 * 3 * 2  # three rates a method; three seeds of two measures
    assert {row["status"] for row in found} == {"finished"}
    ours = [row for row in found if row["method"] == "g-lora" and row["measure"] == "test loss"]
    assert [float(row["value"]) for row in ours] == pytest.approx(LOSSES["g-lora"])
    assert [row["seed"] for row in ours] == ["0", "1", "2"]


def test_the_same_records_give_the_same_files(written: tuple[Comparison, Path]) -> None:
    _, out = written
    names = ("summary.csv", "runs.csv", "report.md", "index.html", "differences.png")
    before = {name: (out / name).read_bytes() for name in names}
    write_report(out)
    assert {name: (out / name).read_bytes() for name in names} == before


def test_what_is_missing_is_said(tmp_path: Path, model_folder: Path) -> None:
    plan = resolved_plan(model_folder, methods={"lora": None, "rslora": None}, seeds=[0, 1])
    store = Store(tmp_path)
    fill(store, plan, {"lora": [1.0, 1.1], "rslora": [1.0, 1.1]})
    gone = final_run(plan, "sums", plan.contender("rslora"), BEST, 1)
    shutil.rmtree(store.path(gone))
    diverged = sweep_run(plan, "sums", plan.contender("lora"), 4, 0.1)
    shutil.rmtree(store.path(diverged))
    store.fail(diverged, "the loss became nan", diverged=True)
    comparison = compare_records(Store(tmp_path))
    assert problems(comparison) == [
        "sums/lora/rate-0.1-steps-4: diverged, the loss stopped being a number",
        "1 run(s) are still to be made; every number here is provisional",
    ]
    assert comparison.incomplete
    assert headline(comparison) == "no method could be judged yet"
    assert "too few seeds" in render_markdown(comparison, [])

    store.fail(gone, "words\n(killed by signal 9)", diverged=False)
    store.fail(gone, "words\n(killed by signal 9)", diverged=False)
    (said,) = [line for line in problems(compare_records(Store(tmp_path))) if "FAILED" in line]
    assert said == "sums/rslora/seed-1-rate-0.01: FAILED after 2 tries: words (killed by signal 9)"


def test_published_tasks_get_tables_of_their_own(tmp_path: Path, model_folder: Path) -> None:
    published = {"tasks": ["boolq"]}
    plan = resolved_plan(model_folder, methods={"lora": None, "rslora": None}, seeds=[0, 1], published=published)
    store = Store(tmp_path)
    fill(store, plan, {"lora": [1.0, 1.1], "rslora": [1.0, 1.1]})
    for label, right in (("lora", [True, False, False, False]), ("rslora", [True, True, True, False])):
        for seed in (0, 1):
            losses = [0.5, 0.25, 0.25, 1.0] if label == "lora" else [0.25, 0.25, 0.25, 0.25]
            scores = TaskScores(
                task="boolq", metric="accuracy", value=sum(right) / 4, right=right, loss=sum(losses) / 4,
                losses=losses, data_hash="0",
            )  # fmt: skip
            path = store.path(final_run(plan, "sums", plan.contender(label), BEST, seed)) / "tasks.json"
            path.write_text(Tasks(measured=plan.plan.published, tasks=[scores]).model_dump_json())
    comparison = compare_records(Store(tmp_path))
    score, loss = (table(comparison, name) for name in ("boolq accuracy", "boolq reference loss"))
    assert [line.mean for line in score.lines] == [0.25, 0.75]
    assert [line.mean for line in loss.lines] == [0.5, 0.25]
    assert (score.higher_is_better, loss.higher_is_better) == (True, False)
    assert loss.lines[1].judged is not None
    assert loss.lines[1].judged.difference.mean == pytest.approx(-0.25)


def test_a_folder_without_a_final_run_still_has_a_report(tmp_path: Path, model_folder: Path) -> None:
    plan = resolved_plan(model_folder, methods={"lora": None})
    store = Store(tmp_path)
    store.save_plan(plan)
    spec = sweep_run(plan, "sums", plan.contender("lora"), 4, BEST)
    leave(store, spec, record_of(spec, 1.25))
    write_report(tmp_path)
    (row,) = rows(tmp_path / "runs.csv")
    assert float(row["validation_loss"]) == 1.25
    assert "4 run(s) are still to be made" in (tmp_path / "index.html").read_text()
    assert not list(tmp_path.glob("*.png"))


def test_the_page_is_self_contained(written: tuple[Comparison, Path]) -> None:
    _, out = written
    page = (out / "index.html").read_text(encoding="utf-8")
    fetched = browser.fetched(page)
    assert all(link.startswith("data:") for link in fetched)
    assert len([link for link in fetched if link.startswith("data:image/png;base64,")]) == 8  # 4, light and dark
    assert not re.search(r"https?://|url\(|@import", page)
    assert "<b>label" not in page
    assert "hybrid [a &lt;b&gt;label&lt;/b&gt;]" in page
    for name in PICTURES:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def driven(page: Path, script: str) -> str:
    """The page with a script at the end of its own."""
    return page.read_text(encoding="utf-8").replace("</script>", script + "</script>")


@browser.needs_chromium
@pytest.mark.parametrize(
    ("flags", "ground", "source"), [((), "244, 245, 247", "light"), ((browser.DARK,), "18, 21, 26", "dark")]
)
def test_the_page_opens_with_its_pictures(
    written: tuple[Comparison, Path], tmp_path: Path, flags: tuple[str, ...], ground: str, source: str
) -> None:
    page = tmp_path / "page.html"
    page.write_text(driven(written[1] / "index.html", """
      addEventListener("load", () => {
        const seen = [...document.images].map((image) => {
          const box = image.getBoundingClientRect();
          const dark = image.currentSrc === image.parentNode.querySelector("source").srcset;
          const visible = image.complete && image.naturalWidth > 500 && box.width > 500 && box.height > 150;
          return visible && (dark ? "dark" : "light");
        });
        document.documentElement.dataset.seen = seen.join() + "|" + getComputedStyle(document.body).backgroundColor;
      });
    """), encoding="utf-8")  # fmt: skip
    seen = browser.visit(page, tmp_path / "profile", *flags)
    assert seen.console == []
    assert 'data-ready="true"' in seen.dom
    assert f'data-seen="{",".join([source] * 4)}|rgb({ground})"' in seen.dom


@browser.needs_chromium
def test_sorting_and_filtering(written: tuple[Comparison, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(driven(written[1] / "index.html", """
      const first = document.querySelector("table.sortable");
      const mean = [...first.querySelectorAll("th button")].find((button) => button.textContent === "mean");
      const order = () => [...first.tBodies[0].rows].map((row) => row.cells[0].textContent.split(" ")[0]).join();
      mean.click();
      const down = order();
      mean.click();
      filter.value = "g-lora"; filter.dispatchEvent(new Event("input"));
      const left = [...document.querySelectorAll("tbody tr")].filter((row) => !row.hidden).length;
      document.documentElement.dataset.seen = [down, order(), left].join("|");
    """), encoding="utf-8")  # fmt: skip
    seen = browser.visit(page, tmp_path / "profile")
    assert seen.console == []
    up = ["g-lora", "lora-r8", "lora", "tied", "hybrid", "rslora"]  # 0.970, 1.000, 1.020, 1.021, 1.040, 1.070
    lines = 6  # of two tables, a contrast below each, of learning rates and of costs
    assert f'data-seen="{",".join(reversed(up))}|{",".join(up)}|{lines}"' in seen.dom
