"""What results/ reports is what its records say, word for word, and docs/results.md leaves none of it out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from benchmarks.results import RESULTS, comparisons

from localora.lab.report.comparison.write import write_report

PAGE = RESULTS.parent / "docs" / "results.md"


@pytest.mark.slow
@pytest.mark.parametrize("folder", comparisons(), ids=lambda folder: folder.name)
def test_a_report_is_up_to_date(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / folder.name)
    write_report(copy)
    written = (copy / "report.md").read_text(encoding="utf-8")
    assert written == (folder / "report.md").read_text(encoding="utf-8"), "run `make results`"


def test_the_summary_links_to_every_comparison() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [folder.name for folder in comparisons() if f"(../results/{folder.name}/report.md)" not in page] == []
