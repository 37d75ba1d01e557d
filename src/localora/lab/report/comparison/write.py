"""The report's files: CSV, Markdown, pictures, and one self-contained page, with no request to anywhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from localora.files import write_file
from localora.lab.compare.comparison import Comparison, compare_records
from localora.lab.compare.statistics.verdict import MEANINGS, Judged
from localora.lab.compare.store import Store
from localora.lab.pages import shell
from localora.lab.report.comparison.figures import TITLES, draw_all
from localora.lab.report.comparison.sections import Grid, Section, headline, problems, sections, summary

COLUMNS = (
    "task", "measure", "kind", "method", "over", "budget_label", "trainable", "learning_rate", "seeds", "mean", "sd",
    "difference", "low", "high", "p", "p_holm", "p_tie", "verdict",
)  # fmt: skip

MARKED = {*MEANINGS, "baseline", "headroom"}  # words that have a colour
READING: dict[str, str] = {
    **MEANINGS,
    "difference, interval": (
        "method minus baseline, paired by seed and by test item; the interval accounts for both being samples. What "
        "seeds do is pooled over the methods of the table"
    ),
    "primary comparison": "a pair that the plan names as what it is made for; p corrected over these alone",
    "contrast": "two further methods of the plan against each other",
    "p (Holm)": "of no difference, corrected over all tests of the report: methods, headroom, contrasts, every table",
    "p (tie)": "of a difference of at least the margin (two one-sided tests), corrected the same way; small for a tie",
    "McNemar by seed": "exact p of each seed alone, uncorrected; it knows nothing of the spread between seeds",
    "trainable": ("parameters, and their share of LoRA's at the plan's r; the label of another budget is in brackets"),
    "stored": "parameters of the adapter in the end, with the frozen terms of its events",
    "plateau": "the rates whose validation loss is within the margin of the best, and the ratio of its ends",
    "effective rank": "median over layers of exp(entropy of the singular values) of the update",
    "exported rank": (
        "of the update as plain LoRA, exactly; in brackets the rank that the file is padded to with zeros, if another"
    ),
    "gain, loss": "of a watched plan: by how much the test loss fell, and by how much those of watched tasks grew",
}


def write_report(folder: Path) -> Comparison:
    """`summary.csv`, `report.md`, a PNG of each picture, and `index.html`, which holds all in one file.

    Raises:
        PlanError, RecordError: the folder holds no comparison, or damaged records.
    """
    comparison = compare_records(Store(folder))
    write_file(folder / "summary.csv", summary_csv(comparison))
    pictures = draw_all(comparison)
    for name, drawn in pictures.items():
        write_file(folder / f"{name}.png", drawn)
    write_file(folder / "report.md", render_markdown(comparison, [(f"{name}.png", TITLES[name]) for name in pictures]))
    write_file(folder / "index.html", render_page(comparison, pictures))
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


def render_page(comparison: Comparison, pictures: dict[str, bytes]) -> str:
    """The page, given each picture as PNG bytes."""
    reading = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in READING.items())
    parts = [
        _head(comparison),
        *map(_section, sections(comparison)),
        *(shell.picture(TITLES[name], drawn) for name, drawn in pictures.items()),
        f"<section><h2>How to read it</h2><dl>{reading}</dl></section>",
    ]
    style = files("localora.lab.report.comparison").joinpath("page.css").read_text(encoding="utf-8")
    return shell.whole_page(f"Comparison: {comparison.resolved.name}", parts, style)


def _head(comparison: Comparison) -> str:
    found, warning = problems(comparison), ""
    if found:
        items = "".join(f"<li>{escape(line)}</li>" for line in found)
        warning = f'<section class="note warn"><h2>Before you read on</h2><ul>{items}</ul></section>'
    return f"""<h1>{escape(comparison.resolved.name)}: {escape(headline(comparison))}</h1>
<p class="soft">{escape(summary(comparison))}</p>
{warning}<input id="filter" type="search" placeholder="filter all tables, e.g. cps-lora" aria-label="filter tables">
"""


def _section(section: Section) -> str:
    body = "".join(shell.table(grid.headings, grid.rows, MARKED) for grid in section.grids)
    body += "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
    return f"<section><h2>{escape(section.title)}</h2>{body}</section>\n"


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
            own: dict[str, Any] = {"kind": c.role, "method": c.label, "over": over, "budget_label": c.budget_label}
            own |= {"trainable": c.trainable, "learning_rate": line.rate, "seeds": len(line.values)}
            own |= {"mean": line.mean, "sd": line.sd}
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
