"""The report's files hold what was seen, and its page opens without a request or an error."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from planted import clustered, without_clusters

import browser
from localora.lab.inspect.microscope import inspect_delta
from localora.lab.inspect.report import InspectionReport

HOSTILE = 'model.layers.1.<b onload="x">&.q_proj'
NAMES = ("model.layers.0.q_proj", HOSTILE, "model.layers.10.q_proj")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[InspectionReport, Path]:
    """A clustered layer, one of the same spectrum without clusters, and an unchanged one."""
    M, _, _ = clustered(64, 80, 2, 3)
    deltas = dict(zip(NAMES, (M, without_clusters(M), torch.zeros(64, 80)), strict=True))
    out = tmp_path_factory.mktemp("report") / "made" / "by the report"
    return inspect_delta(deltas, out=out, rank=4, clusters=(2, 3), draws=2), out


def test_report_in_memory(written: tuple[InspectionReport, Path]) -> None:
    report, _ = written
    assert [layer.name for layer in report.layers] == list(NAMES)  # by depth: 0, 1, 10
    planted, random, unchanged = report.layers
    assert report.headline() == "clusters in 1 of 3 layers"
    assert report.verdicts() == {"clusters": 1, "none": 1, "unchanged": 1}
    assert planted.captured["cps_k2_balanced"] == pytest.approx(1.0)
    assert planted.cluster_sizes["k2_balanced"] == [(32, 40), (32, 40)]
    assert planted.correlation["k2_balanced"] == pytest.approx(0.0, abs=1e-6)
    assert planted.rank_utilisation == pytest.approx(planted.effective_rank / 4)
    assert planted.captured["grid_k3"] is None  # 3 does not divide 4
    lora = report.median_captured()["lora"]
    assert lora == statistics.median(layer.captured["lora"] or 0.0 for layer in (planted, random))
    assert unchanged.captured == {}
    assert unchanged.effective_rank == 0
    text = str(report)
    assert "clusters in 1 of 3 layers (r 4, 2 draws a null" in text
    assert f"lora               {lora:6.1%}" in text


def test_an_adapter_made_of_clusters_is_not_news(written: tuple[InspectionReport, Path]) -> None:
    report, _ = written
    made = InspectionReport(**{**vars(report), "by_construction": True})
    assert made.headline() == "1 of 3 layers show clusters; this adapter is made of clusters, so it must"


def test_json(written: tuple[InspectionReport, Path]) -> None:
    report, out = written
    saved = json.loads((out / "inspection.json").read_text())
    assert saved == report.record()
    assert saved["summary"]["verdicts"] == report.verdicts()
    assert saved["layers"][0]["singular_values"][:6] == pytest.approx(report.layers[0].singular_values[:6], rel=1e-5)
    null = saved["layers"][0]["test"]["nulls"]["matched"]["cps_k2_balanced"]
    assert null["z"] == pytest.approx((null["observed"] - null["mean"]) / null["sd"], rel=1e-4)


def test_the_page_is_self_contained(written: tuple[InspectionReport, Path]) -> None:
    _, out = written
    page = (out / "index.html").read_text(encoding="utf-8")
    fetched = browser.fetched(page)
    assert fetched
    assert all(link.startswith("data:") for link in fetched)
    assert len([link for link in fetched if link.startswith("data:image/png;base64,")]) == 4
    assert page.count('class="drawing"') == 3  # all but the matrices, which a dark page does not invert
    assert not re.search(r"https?://|url\(|@import", page)
    assert HOSTILE not in page
    assert "&lt;b onload=&quot;x&quot;&gt;&amp;.q_proj" in page
    for name in ("captured", "heatmap", "spectra", "matrices"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@browser.needs_chromium
def test_the_page_opens_without_an_error(written: tuple[InspectionReport, Path], tmp_path: Path) -> None:
    _, out = written
    seen = browser.visit(out / "index.html", tmp_path / "profile")
    assert seen.console == []
    assert 'data-ready="true"' in seen.dom  # the script ran to its end


@browser.needs_chromium
def test_the_check_sees_errors_and_requests(written: tuple[InspectionReport, Path], tmp_path: Path) -> None:
    _, out = written
    page = (out / "index.html").read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(page.replace('"use strict";', '"use strict"; missing();'), encoding="utf-8")
    seen = browser.visit(broken, tmp_path / "profile")
    assert any("missing is not defined" in line for line in seen.console)
    assert 'data-ready="true"' not in seen.dom
    broken.write_text(page.replace("<main>", '<main><img src="https://example.invalid/x.png">'), encoding="utf-8")
    assert any("Content Security Policy" in line for line in browser.visit(broken, tmp_path / "other").console)


@browser.needs_chromium
def test_sorting_and_filtering(written: tuple[InspectionReport, Path], tmp_path: Path) -> None:
    _, out = written
    page = (out / "index.html").read_text(encoding="utf-8")
    clicks = """
      const column = [...document.querySelectorAll("th button")].find((b) => b.textContent === "excess");
      column.click();
      const order = () => [...document.querySelectorAll("tbody tr")].map((row) => row.cells[6].textContent).join();
      const down = order();
      column.click();
      filter.value = "unch"; filter.dispatchEvent(new Event("input"));
      const left = [...document.querySelectorAll("tbody tr")].filter((row) => !row.hidden).length;
      document.documentElement.dataset.seen = [down, order(), left].join("|");
    </script>"""
    driven = tmp_path / "driven.html"
    driven.write_text(page.replace("</script>", clicks), encoding="utf-8")
    seen = browser.visit(driven, tmp_path / "profile")
    assert seen.console == []
    assert 'data-seen="clusters,none,unchanged|none,clusters,unchanged|1"' in seen.dom
