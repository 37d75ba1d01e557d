"""The report, from records whose numbers are known: every number against one worked out by hand, every form of it."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from scipy import stats

import browser
from localora.lab.compare.comparison import Comparison, compare_records
from localora.lab.compare.plan import ResolvedPlan
from localora.lab.compare.runs import final_run, sweep_run
from localora.lab.compare.store import Store, Tasks, Watched
from localora.lab.compare.tables import Table
from localora.lab.report.comparison import figures
from localora.lab.report.comparison.console import print_comparison
from localora.lab.report.comparison.sections import headline, headroom_sentence, problems
from localora.lab.report.comparison.write import render_markdown, write_report
from localora.lab.training.record import Evaluation, Items
from planned import BEST, fill, leave, record_of, resolved_plan

LORA = (1.00, 1.02, 1.04)
DIFFERENCES = {  # of three seeds
    "lora": (0.0, 0.0, 0.0),
    "g-lora": (-0.050, -0.052, -0.048),
    "tied": (0.001, 0.002, 0.000),
    "rslora": (0.050, 0.052, 0.048),
    "hybrid": (0.005, 0.003, 0.004),
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
TESTS = 2 * (4 + 1 + 1)  # two tables, each of four methods, one headroom run, and a contrast that is neither
PICTURES = ("differences", "learning_rates")


def by_hand(label: str, base: str = "lora") -> tuple[float, float, float]:
    """Mean difference, standard error and degrees of freedom, from the residuals of method + seed."""
    y = np.array([LOSSES[name] for name in DIFFERENCES])
    residual = y - y.mean(0) - y.mean(1)[:, None] + y.mean()
    pooled = 2 * (residual**2).sum() / (5 * 2)
    d = np.subtract(LOSSES[label], LOSSES[base])
    return d.mean(), (max(pooled, d.var(ddof=1)) / 3) ** 0.5, 5 * 2


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
    wanted = [row for row in rows(written[1] / "summary.csv") if row["measure"] == "test loss"]
    found = {row["method"]: row for row in wanted if row["kind"] not in ("contrast", "room")}
    (room,) = (row for row in wanted if row["kind"] == "room")
    eight = found["lora-r8"]
    assert (room["method"], room["over"]) == ("lora-r8", "lora")
    assert float(room["difference"]) == pytest.approx(float(eight["mean"]) - float(found["lora"]["mean"]))
    assert list(found) == list(DIFFERENCES)
    assert (found["lora-r8"]["kind"], found["g-lora"]["over"]) == ("headroom", "lora")
    ours = found["g-lora"]
    assert float(ours["mean"]) == pytest.approx(0.97)  # of 0.95, 0.968 and 0.992
    assert float(ours["sd"]) == pytest.approx(((0.02**2 + 0.002**2 + 0.022**2) / 2) ** 0.5)
    assert float(ours["difference"]) == pytest.approx(-0.05)
    mean, error, df = by_hand("g-lora")
    half = stats.t.ppf(0.975, df) * error
    assert (float(ours["low"]), float(ours["high"])) == pytest.approx((mean - half, mean + half))
    p = 2 * stats.t.sf(abs(mean) / error, df)
    assert float(ours["p"]) == pytest.approx(p)
    assert TESTS * p > float(ours["p_holm"]) > 5 * p  # of the report's tests, few are as sure
    mean, error, df = by_hand("tied")
    p_tie = stats.t.cdf((mean - 0.005) / error, df)  # from 0.001 to the margin
    assert float(found["tied"]["p_tie"]) == pytest.approx(TESTS * p_tie)  # the least of all
    assert (found["lora"]["difference"], found["lora"]["verdict"]) == ("", "")
    assert found["hybrid"]["budget_label"] == "a <b>label</b>"


def test_every_verdict_occurs(written: tuple[Comparison, Path]) -> None:
    judged = {line.entry.label: line.judged for line in table(written[0], "test loss").lines}
    assert {label: found.verdict for label, found in judged.items() if found} == {
        "g-lora": "better",
        "tied": "tie",
        "rslora": "worse",
        "hybrid": "undecided",
    }
    assert headline(written[0]) == "against lora, of 8 comparisons: better 1, tie 1, worse 1, undecided 5"


def test_scores_are_paired_by_item(written: tuple[Comparison, Path]) -> None:
    found = {line.entry.label: line for line in table(written[0], "exact match").lines}
    ours = found["g-lora"]
    assert (ours.mean, found["lora"].mean) == (1.0, 0.5)
    # Items differ by 0 or 1, five each, in all seeds alike: MS_N = 3 * 10 * 0.25 / 9, Var = MS_N / 30, t = 3, df = 9
    assert ours.judged is not None
    assert ours.judged.difference.se == pytest.approx((3 * 10 * 0.25 / 9 / 30) ** 0.5)
    assert ours.judged.difference.df == pytest.approx(9)
    assert ours.judged.difference.p == pytest.approx(0.0149564, rel=1e-4)
    assert ours.judged.verdict == "undecided"
    assert list(ours.mcnemar) == [2 * 0.5**5] * 3  # five right that LoRA has wrong, none the other way
    assert found["tied"].judged is not None
    assert found["tied"].judged.difference.mean == 0
    assert found["tied"].judged.verdict == "undecided"  # the same answers, but to ten items only


def test_contrasts_are_judged_with_all_the_rest(written: tuple[Comparison, Path]) -> None:
    comparison, out = written
    pairs = [row for row in rows(out / "summary.csv") if row["kind"] == "contrast"]
    found = {row["method"]: row for row in pairs if row["measure"] == "test loss"}
    assert [(row["method"], row["over"]) for row in found.values()] == [("g-lora", "rslora"), ("tied", "lora")]
    ours = found["g-lora"]
    assert float(ours["difference"]) == pytest.approx(-0.1)  # -0.1, -0.104, -0.096: not over LoRA, which is 0.05 better
    mean, error, df = by_hand("g-lora", "rslora")
    assert float(ours["high"]) == pytest.approx(mean + stats.t.ppf(0.975, df) * error)
    assert float(ours["p_holm"]) == pytest.approx(TESTS * 2 * stats.t.sf(abs(mean) / error, df))  # the least of all
    assert ours["verdict"] == "better"
    assert found["tied"]["verdict"] == "tie"
    assert len(pairs) == 4  # for the losses and for the answers
    half = stats.t.ppf(0.975, df) * error
    interval = f"[{mean - half:+.4f}, {mean + half:+.4f}]"
    shown = f"-0.1000 | {interval}"
    assert f"| g-lora over rslora | better | {shown} |" in (out / "report.md").read_text(encoding="utf-8")
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "g-lora over rslora" in page
    said = io.StringIO()
    print_comparison(comparison, Console(file=said, width=100))
    assert f"g-lora over rslora: -0.1000 {interval}, better\n" in said.getvalue()


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
    mean, error, df = by_hand("g-lora")
    half = stats.t.ppf(0.975, df) * error
    interval = f"[{mean - half:+.4f}, {mean + half:+.4f}]"
    line = next(line for line in report.splitlines() if line.startswith("| g-lora |") and "better" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "g-lora", "better", "0.9700", "0.0211", "-0.0500", interval, "below 0.001", "1.000", "-", "0.01",
        "640 (100.0%)",
    ]  # fmt: skip
    assert "Test items count as fixed: the records hold none" in report
    assert "Seeds and the 10 test items are both counted as samples." in report
    assert "| hybrid [a &lt;b&gt;label&lt;/b&gt;] |" in report
    # What comes before the first step counts; trainable, stored, exported rank
    assert "| sums | g-lora | 12.5 | 4.0 | 512 | 640 | 640 | - | 3.0 | 2.0 |" in report
    assert "| sums | lora | 12.5 | 4.0 | 512 | 640 | 640 | 4 | 3.0 | 2.0 |" in report  # LoRA's rank is its own
    assert "| sums | lora | 0.01 | 0.01 to 0.01 (x 1) | 0.01 of 0.001, 0.01, 0.1 |" in report
    for name in PICTURES:
        assert f"({name}.png)" in report


def test_the_same_records_give_the_same_files(written: tuple[Comparison, Path]) -> None:
    _, out = written
    names = ("summary.csv", "report.md", "index.html", "differences.png")
    before = {name: (out / name).read_bytes() for name in names}
    write_report(out)
    assert {name: (out / name).read_bytes() for name in names} == before


def test_what_is_missing_is_said(tmp_path: Path, model_folder: Path) -> None:
    plan = resolved_plan(model_folder, methods={"lora": None, "rslora": None}, seeds=[0, 1])
    store = Store(tmp_path)
    fill(store, plan, {"lora": [1.0, 1.1], "rslora": [1.0, 1.1]})
    gone = final_run(plan, "sums", plan.entry("rslora"), BEST, 1)
    shutil.rmtree(store.path(gone))
    diverged = sweep_run(plan, "sums", plan.entry("lora"), 0.1, 1000)
    shutil.rmtree(store.path(diverged))
    store.fail(diverged, "the loss became nan", diverged=True)
    comparison = compare_records(Store(tmp_path))
    assert problems(comparison) == [
        "sums/lora/rate-0.1-steps-4-seed-1000: diverged, the loss stopped being a number",
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
            items = Items(ids=list("abcd"), loss_sums=losses, tokens=[1] * 4)
            found = Evaluation(
                loss=sum(losses) / 4, examples=4, score_name="accuracy", score=sum(right) / 4, score_examples=4,
                right=right, items=items,
            )  # fmt: skip
            path = store.path(final_run(plan, "sums", plan.entry(label), BEST, seed)) / "tasks.json"
            path.write_text(Tasks(measured=plan.plan.published, tasks={"boolq": found}).model_dump_json())
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
    spec = sweep_run(plan, "sums", plan.entry("lora"), BEST, 1000)
    leave(store, spec, record_of(spec, 1.25))
    write_report(tmp_path)
    assert not rows(tmp_path / "summary.csv")
    assert "7 run(s) are still to be made" in (tmp_path / "index.html").read_text()
    assert not list(tmp_path.glob("*.png"))


def test_the_page_is_self_contained(written: tuple[Comparison, Path]) -> None:
    _, out = written
    page = (out / "index.html").read_text(encoding="utf-8")
    fetched = browser.fetched(page)
    assert all(link.startswith("data:") for link in fetched)
    assert len([link for link in fetched if link.startswith("data:image/png;base64,")]) == len(PICTURES)
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
    ("flags", "ground", "drawn"),
    [((), "244, 245, 247", "none"), ((browser.DARK,), "18, 21, 26", "invert(0.9) hue-rotate(180deg)")],
)
def test_the_page_opens_with_its_pictures(
    written: tuple[Comparison, Path], tmp_path: Path, flags: tuple[str, ...], ground: str, drawn: str
) -> None:
    page = tmp_path / "page.html"
    page.write_text(driven(written[1] / "index.html", """
      addEventListener("load", () => {
        const seen = [...document.images].map((image) => {
          const box = image.getBoundingClientRect();
          const visible = image.complete && image.naturalWidth > 500 && box.width > 500 && box.height > 150;
          return visible && getComputedStyle(image).filter;
        });
        document.documentElement.dataset.seen = seen.join() + "|" + getComputedStyle(document.body).backgroundColor;
      });
    """), encoding="utf-8")  # fmt: skip
    seen = browser.visit(page, tmp_path / "profile", *flags)
    assert seen.console == []
    assert 'data-ready="true"' in seen.dom
    assert f'data-seen="{",".join([drawn] * len(PICTURES))}|rgb({ground})"' in seen.dom


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


def test_what_comes_from_outside_is_inert(tmp_path: Path, model_folder: Path) -> None:
    methods = {"lora": None, "rslora": {"budget_label": "=HYPERLINK(1) | <script>alert(1)</script>"}}
    plan = resolved_plan(model_folder, methods=methods, seeds=[0, 1])
    store = Store(tmp_path)
    fill(store, plan, {"lora": [1.0, 1.1], "rslora": [1.0, 1.1]})
    gone = final_run(plan, "sums", plan.entry("rslora"), BEST, 1)
    shutil.rmtree(store.path(gone))
    store.fail(gone, "<script>alert(2)</script> [x](javascript:alert(3))", diverged=False)
    values = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    (tmp_path / "plan.json").write_text(json.dumps(values | {"name": "<script>alert(4)</script>"}), encoding="utf-8")
    write_report(tmp_path)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in report
    assert "](javascript" not in report
    assert r"rslora [=HYPERLINK(1) \| &lt;script&gt;alert(1)&lt;/script&gt;]" in report
    assert "<script>alert" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    labels = {row["budget_label"] for row in rows(tmp_path / "summary.csv")}
    assert labels == {"", "'=HYPERLINK(1) | <script>alert(1)</script>"}
    negative = [row["difference"] for row in rows(tmp_path / "summary.csv") if row["difference"]]
    assert not any(value.startswith("'") for value in negative)  # numbers stay numbers


def with_items(store: Store, plan: ResolvedPlan, losses: dict[str, list[list[float]]]) -> None:
    """Final runs whose items have these nats, a list a seed; the first item is of three tokens, the others of one."""
    for label, by_seed in losses.items():
        for seed, nats in zip(plan.plan.seeds, by_seed, strict=True):
            spec = final_run(plan, "sums", plan.entry(label), BEST, seed)
            tokens = [3] + [1] * (len(nats) - 1)
            record = record_of(spec, 1.0, sum(nats) / sum(tokens))
            assert record.after is not None
            record.after.items = Items(ids=[f"i{i}" for i in range(len(nats))], loss_sums=nats, tokens=tokens)
            leave(store, spec, record)


def test_losses_with_items_are_judged_over_seeds_and_items(tmp_path: Path, model_folder: Path) -> None:
    plan = resolved_plan(model_folder, methods={"lora": None, "rslora": None}, seeds=[0, 1])
    store = Store(tmp_path)
    fill(store, plan, {"lora": [1.0, 1.0], "rslora": [1.0, 1.0]})
    ours, theirs = [[3.0, 1.5, 1.0, 2.0], [3.3, 1.0, 1.5, 2.5]], [[3.6, 1.0, 1.0, 1.0], [3.6, 1.0, 1.2, 1.0]]
    with_items(store, plan, {"lora": theirs, "rslora": ours})
    (found,) = compare_records(store).tables
    assert found.items == 4
    judged = found.lines[1].judged
    assert judged is not None
    w = np.array([2.0, *[2 / 3] * 3])  # tokens over their mean, 1.5
    a, b = np.array(ours) / 1.5, np.array(theirs) / 1.5
    d = (a - a.mean() * (w - 1)) - (b - b.mean() * (w - 1))
    sums = [sum(x) - sum(y) for x, y in zip(ours, theirs, strict=True)]
    assert judged.difference.mean == pytest.approx(np.mean(sums) / 6)
    rest = d - d.mean(0) - d.mean(1)[:, None] + d.mean()
    of_items = 2 * ((d.mean(0) - d.mean()) ** 2).sum() / 3
    of_seeds, left = 4 * ((d.mean(1) - d.mean()) ** 2).sum(), (rest**2).sum() / 3
    assert judged.difference.se == pytest.approx(((of_items + max(0, of_seeds - left)) / 8) ** 0.5)
    assert judged.difference.se > 1.5 * (of_seeds / 8) ** 0.5  # as it would be if items were fixed


def test_records_without_items_beside_some_with_them_are_compared_by_seed(tmp_path: Path, model_folder: Path) -> None:
    plan = resolved_plan(model_folder, methods={"lora": None, "rslora": None, "dora": None}, seeds=[0, 1])
    store = Store(tmp_path)
    fill(store, plan, {"lora": [1.0, 1.1], "rslora": [1.0, 1.2], "dora": [1.0, 1.1]})
    with_items(store, plan, {"lora": [[3.0, 1.0, 2.0]] * 2, "dora": [[3.0, 1.0, 2.0]] * 2})
    (found,) = compare_records(store).tables
    by_label = {line.entry.label: line.judged for line in found.lines}
    assert by_label["rslora"] is not None
    assert by_label["rslora"].difference.mean == pytest.approx(1.1 - 6 / 5)
    assert found.items is None
    assert "Test items count as fixed" in render_markdown(compare_records(store), [])


def test_primary_pairs_are_a_family_of_their_own_and_come_first(tmp_path: Path, model_folder: Path) -> None:
    plan = resolved_plan(
        model_folder,
        methods=METHODS,
        seeds=[0, 1, 2],
        headroom=[2],
        primary=[["g-lora", "lora"], ["g-lora", "lora-r8"]],
    )
    fill(Store(tmp_path), plan, LOSSES)
    comparison = write_report(tmp_path)
    (found,) = comparison.tables
    first, second = found.primary
    main = next(line.judged for line in found.lines if line.entry.label == "g-lora")
    assert main is not None
    assert first.judged.difference == main.difference
    assert second.judged.difference.mean == pytest.approx(-0.03)  # a headroom run may be one of the two
    assert first.judged.p_holm == pytest.approx(2 * first.judged.difference.p)  # of two tests, not of six
    assert main.p_holm > first.judged.p_holm
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert report.index("## Primary comparisons") < report.index("## sums: test loss")
    assert "| sums | test loss | g-lora over lora | better |" in report
    assert headline(comparison).startswith("of 2 primary comparisons: better 2; against lora, of 4 comparisons")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.index("Primary comparisons") < page.index("sums: test loss")
    kinds = [row["kind"] for row in rows(tmp_path / "summary.csv")]
    assert kinds == ["method"] * 5 + ["headroom", "room"] + ["primary"] * 2


def test_what_was_forgotten_stands_beside_what_was_gained(tmp_path: Path, model_folder: Path) -> None:
    watch = {"names": {"task": "facts", "test_size": 6}}
    plan = resolved_plan(model_folder, methods={"lora": None, "rslora": None}, seeds=[0, 1], watch=watch)
    store = Store(tmp_path)
    fill(store, plan, {"lora": [1.0, 1.2], "rslora": [1.0, 1.1]})
    for label, changed in (("lora", (0.25, 0.35)), ("rslora", (0.5, 0.7))):
        for seed in (0, 1):
            before, after = (Evaluation(loss=2.0 + d, examples=6) for d in (0.0, changed[seed]))
            watched = Watched(tasks=plan.plan.watch, before={"names": before}, after={"names": after})
            spec = final_run(plan, "sums", plan.entry(label), BEST, seed)
            (store.path(spec) / "watched.json").write_text(watched.model_dump_json())
    comparison = write_report(tmp_path)
    lora, _ = comparison.balances
    assert lora.gain == pytest.approx((1.9, 0.1 * 2**0.5))  # from 3.0 to 1.0 and 1.2
    assert lora.changes["names"] == pytest.approx((0.3, 0.05 * 2**0.5))
    forgotten = table(comparison, "names: change of loss")
    assert forgotten.lines[1].judged is not None
    assert forgotten.lines[1].judged.difference.mean == pytest.approx(0.3)
    assert headline(comparison).startswith("against lora, of 1 comparisons")  # what was forgotten stands apart
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| sums | lora | +1.9000 (sd 0.1414) | +0.3000 (sd 0.0707) |" in report
    assert "(frontier.png)" in report
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_says_how_the_plan_was_changed_and_the_rates_chosen(tmp_path: Path, model_folder: Path) -> None:
    rates = {"grid": [1e-3, 1e-2, 1e-1], "validation_examples": 4, "seeds": [1000]}
    plan = resolved_plan(model_folder, methods={"lora": None, "rslora": None}, learning_rates=rates)
    store = Store(tmp_path)
    fill(store, plan, {"lora": [1.0, 1.1], "rslora": [1.0, 1.1]})
    old = store.load_plan()
    store.save_plan(old.model_copy(update={"plan": old.plan.model_copy(update={"r": 8})}))
    store.save_plan(plan, results=4)
    assert problems(compare_records(store)) == [
        "the plan was changed after 4 results were seen: r was 8, is 4",
        "learning rates were chosen with one seed: differences that are its luck are found more often",
    ]


def test_every_method_has_a_colour_of_its_own() -> None:
    assert len(set(figures.COLOURS)) == 16
    labels = [f"m{i}" for i in range(20)]
    entries = [SimpleNamespace(label=label) for label in labels]
    comparison: Any = SimpleNamespace(resolved=SimpleNamespace(entries=entries))
    assert len({figures._colour(comparison, label) for label in labels}) == 20


def test_trainable_stored_and_exported_rank_are_three_columns(tmp_path: Path, model_folder: Path) -> None:
    plan = resolved_plan(model_folder, seeds=[0, 1])
    store = Store(tmp_path)
    fill(store, plan, {"lora": [1.0, 1.1], "g-lora": [1.0, 1.1]})
    for seed, (stored, rank) in enumerate([(900, 7), (880, 6)]):
        spec = final_run(plan, "sums", plan.entry("g-lora"), BEST, seed)
        record = record_of(spec, 1.0)
        record.parameters.stored, record.parameters.rank, record.export = stored, rank, {"rank": 8}
        leave(store, spec, record)
    report = render_markdown(compare_records(store), [])
    assert "| trainable | stored | exported rank |" in report
    assert "| 640 | 900 | 7 (file: 8) |" in report  # the exact rank, and the padded one told apart
    assert "| 640 | 640 | 4 |" in report


@browser.needs_chromium
def test_no_table_scrolls_sideways_on_a_page_of_1200_pixels(written: tuple[Comparison, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        driven(
            written[1] / "index.html",
            """
      addEventListener("load", () => {
        const boxes = [...document.querySelectorAll(".scroll")];
        const wide = boxes.filter((box) => box.scrollWidth > box.clientWidth).length;
        const page = document.documentElement.scrollWidth > innerWidth ? "page" : "";
        document.documentElement.dataset.seen = `${innerWidth} ${boxes.length} ${wide}${page}`;
      });
    """,
        )
    )
    seen = browser.visit(page, tmp_path / "profile", "--window-size=1200,2400").dom
    found = re.search(r'data-seen="(\d+) (\d+) (\w+)"', seen)
    assert found is not None
    assert (found[1], found[3]) == ("1200", "0")
    assert int(found[2]) >= 4
