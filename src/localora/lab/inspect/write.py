"""Writes a report's folder: data first, since pictures can be drawn again."""

from __future__ import annotations

from pathlib import Path

from localora.lab.inspect.page import render_page
from localora.lab.inspect.pictures import draw_all
from localora.lab.inspect.report import InspectionReport


def write_report(report: InspectionReport, folder: Path) -> None:
    """`inspection.json`, `layers.csv`, a PNG of each picture, and `index.html`, which holds all of it in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    report.save_json(folder / "inspection.json")
    report.save_csv(folder / "layers.csv")
    light, dark = draw_all(report, "light"), draw_all(report, "dark")
    for name, picture in light.items():
        (folder / f"{name}.png").write_bytes(picture)
    (folder / "index.html").write_text(render_page(report, light, dark), encoding="utf-8")
