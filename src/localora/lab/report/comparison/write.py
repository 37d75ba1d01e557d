"""The report's files: tables as CSV and Markdown, pictures, and the page; numbers first, pictures can be redrawn."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from localora.files import write_file
from localora.lab.compare.comparison import Comparison, compare_records
from localora.lab.compare.statistics.verdict import Judged
from localora.lab.compare.store import Store
from localora.lab.report.comparison.figures import TITLES, draw_all
from localora.lab.report.comparison.html import render_page
from localora.lab.report.comparison.reading import READING
from localora.lab.report.comparison.sections import Grid, headline, problems, sections, summary

COLUMNS = (
    "task", "measure", "kind", "method", "over", "budget_label", "trainable", "learning_rate", "seeds", "mean", "sd",
    "difference", "low", "high", "p", "p_holm", "p_tie", "verdict",
)  # fmt: skip


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


def render_markdown(comparison: Comparison, pictures: Sequence[tuple[str, str]]) -> str:
    """`pictures` are (file name, title)."""
    said = headline(comparison)
    parts = [f"# {_plain(comparison.resolved.name)}", _plain(f"{said[0].upper()}{said[1:]}.")]
    parts.append(_plain(summary(comparison)) + ".")
    if found := problems(comparison):
        parts += ["## Before you read on", "\n".join(f"- {_plain(line)}" for line in found)]
    for section in sections(comparison):
        parts += [f"## {_plain(section.title)}", *map(_grid, section.grids), *section.notes]
    parts += ["## Pictures", "\n\n".join(f"![{caption}]({name})" for name, caption in pictures)]
    parts += ["## How to read it", "\n".join(f"- **{term}**: {text}" for term, text in READING.items())]
    return "\n\n".join(parts) + "\n"


def _grid(grid: Grid) -> str:
    lines = [f"| {' | '.join(grid.headings)} |", f"|{'|'.join([' --- '] + [' ---: '] * (len(grid.headings) - 1))}|"]
    lines += [f"| {' | '.join(_plain(shown).replace('|', chr(92) + '|') for shown, _ in row)} |" for row in grid.rows]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Words from outside: no HTML, no link."""
    return escape(text, quote=False).replace("](", "]\\(")


def summary_csv(comparison: Comparison) -> str:
    """Unrounded: a line a method of each table and a line a pair.

    `kind` is method or headroom, and of pairs primary, contrast or room (headroom over its method at the plan's r).
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for table in comparison.tables:
        of = {"task": table.task, "measure": table.measure}
        for line in table.lines:
            c, over = line.entry, comparison.resolved.plan.baseline if line.judged else ""
            own: dict[str, Any] = {
                "kind": c.role,
                "method": c.label,
                "over": over,
                "budget_label": c.budget_label or "",
            }
            own |= {"trainable": c.trainable, "learning_rate": line.rate, "seeds": len(line.values)}
            own |= {"mean": line.mean, "sd": "" if line.sd is None else line.sd}
            writer.writerow(_inert(of | own | _numbers(line.judged)))
        for kind, contrasts in (("room", table.headroom), ("primary", table.primary), ("contrast", table.contrasts)):
            for pair in contrasts:
                own = {"kind": kind, "method": pair.label, "over": pair.base}
                writer.writerow(_inert(of | own | _numbers(pair.judged)))
    return text.getvalue()


def _numbers(judged: Judged | None) -> dict[str, Any]:
    if judged is None:
        return {}
    d = judged.difference
    found = {"difference": d.mean, "low": d.low, "high": d.high, "p": d.p}
    return found | {"p_holm": judged.p_holm, "p_tie": judged.p_tie, "verdict": judged.verdict}


def _inert(row: dict[str, Any]) -> dict[str, Any]:
    """Words from outside begin with an apostrophe where a spreadsheet would take them for a formula."""
    harmful = ("=", "+", "-", "@", "\t", "\r")
    return {key: f"'{x}" if isinstance(x, str) and x.startswith(harmful) else x for key, x in row.items()}
