"""Writes a report's folder: data first, since pictures can be drawn again."""

from __future__ import annotations

from pathlib import Path

from localora.files import make_folder, write_file
from localora.lab.inspect.page import render_page
from localora.lab.inspect.pictures import draw_all
from localora.lab.inspect.report import InspectionReport


def write_report(report: InspectionReport, folder: Path) -> None:
    """`inspection.json`, `layers.csv`, a PNG of each picture, and `index.html`, which holds all of it in one file."""
    make_folder(folder)
    write_file(folder / "inspection.json", report.to_json())
    write_file(folder / "layers.csv", report.to_csv())
    light, dark = draw_all(report, "light"), draw_all(report, "dark")
    for name, picture in light.items():
        write_file(folder / f"{name}.png", picture)
    write_file(folder / "index.html", render_page(report, light, dark))
