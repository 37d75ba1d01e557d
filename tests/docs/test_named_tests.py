"""A test that the documents name exists, as a file and by its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_they_exist(page: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/.-]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
        source = ROOT / file
        assert source.is_file(), file
        assert not name or f"def {name}(" in source.read_text(encoding="utf-8"), f"{file}::{name}"


def test_each_cell_of_the_parity_page_has_a_test_or_a_reason() -> None:
    rows = [line for line in (ROOT / "docs" / "parity.md").read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    rows = [row for row in rows if not row.startswith(("| ---", "| feature"))]
    assert len(rows) > 20
    for row in rows:
        last = row.strip("| ").rpartition("|")[2].strip()
        assert re.search(r"`tests/|`make |\]\(", last) or len(last) > 10, row
