"""Writes the report into the comparison's folder: numbers first, since pictures can be drawn again."""

from __future__ import annotations

from pathlib import Path

from localora.files import write_file
from localora.lab.compare.comparison import Comparison, compare_records
from localora.lab.compare.store import Store
from localora.lab.report.comparison.figures import TITLES, draw_all
from localora.lab.report.comparison.html import render_page
from localora.lab.report.comparison.markdown import render_markdown
from localora.lab.report.comparison.tables_csv import summary_csv


def write_report(folder: Path) -> Comparison:
    """`summary.csv`, `report.md`, a PNG of each picture, and `index.html`, which holds all in one file.

    Raises:
        PlanError, RecordError: the folder holds no comparison, or damaged records.
    """
    comparison = compare_records(Store(folder))
    write_file(folder / "summary.csv", summary_csv(comparison))
    light, dark = draw_all(comparison, "light"), draw_all(comparison, "dark")
    for name, picture in light.items():
        write_file(folder / f"{name}.png", picture)
    write_file(folder / "report.md", render_markdown(comparison, [(f"{name}.png", TITLES[name]) for name in light]))
    write_file(folder / "index.html", render_page(comparison, light, dark))
    return comparison
