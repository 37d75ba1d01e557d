"""docs/results.md is what the records in results/ say, word for word."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from benchmarks.results import PAGE, RESULTS, fill

pytestmark = pytest.mark.slow


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    copy = shutil.copytree(RESULTS, tmp_path / "results")
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page, copy, "../results") == page, "run `make results`"


def test_a_forgotten_comparison_is_named(tmp_path: Path) -> None:
    (tmp_path / "results" / "some").mkdir(parents=True)
    (tmp_path / "results" / "some" / "plan.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"marks the comparisons \['other'\].*holds \['some'\]"):
        fill("<!-- comparison other -->\n<!-- end -->\n", tmp_path / "results", "../results")
