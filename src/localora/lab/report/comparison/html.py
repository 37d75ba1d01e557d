"""The report as one self-contained page: pictures inlined, no request to anywhere, readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from localora.lab.compare.comparison import Comparison
from localora.lab.compare.headroom import headroom_sentence
from localora.lab.compare.statistics.verdict import MEANINGS
from localora.lab.pages.shell import data_uri, whole_page
from localora.lab.report.comparison.figures import TITLES
from localora.lab.report.comparison.markdown import title
from localora.lab.report.comparison.reading import READING
from localora.lab.report.comparison.text import (
    CONTRAST_HEADINGS,
    COST_HEADINGS,
    HEADINGS,
    PRIMARY_HEADINGS,
    RATE_HEADINGS,
    Cell,
    balance_headings,
    balance_rows,
    contrast_cells,
    cost_rows,
    headline,
    items_sentence,
    line_cells,
    primary_rows,
    problems,
    rate_rows,
    summary,
)

WORD = "word"  # class of cells that hold words; numbers are aligned to the right


def render_page(comparison: Comparison, light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    """The page, given each picture as PNG bytes for both themes."""
    sections = [_head(comparison), *_tables(comparison), *(_picture(key, light[key], dark[key]) for key in light)]
    sections += [
        _section("Learning rates", _grid(RATE_HEADINGS, rate_rows(comparison))),
        _section("Costs and ranks", _grid(COST_HEADINGS, cost_rows(comparison))),
        _section("How to read it", _reading()),
    ]
    style = files("localora.lab.report.comparison").joinpath("page.css").read_text(encoding="utf-8")
    return whole_page(f"Comparison: {comparison.resolved.name}", sections, style)


def _head(comparison: Comparison) -> str:
    found = problems(comparison)
    warning = ""
    if found:
        items = "".join(f"<li>{escape(line)}</li>" for line in found)
        warning = f'<section class="note warn"><h2>Before you read on</h2><ul>{items}</ul></section>'
    said = escape(headline(comparison))
    return f"""<h1>{escape(comparison.resolved.name)}: {said}</h1>
<p class="soft">{escape(summary(comparison))}</p>
{warning}<input id="filter" type="search" placeholder="filter all tables, e.g. cps-lora" aria-label="filter tables">
"""


def _tables(comparison: Comparison) -> list[str]:
    plan = comparison.resolved.plan
    sections = []
    if primary := primary_rows(comparison):
        sections.append(_section("Primary comparisons", _grid(PRIMARY_HEADINGS, primary)))
    for table in comparison.tables:
        rows = [line_cells(table, line, plan.baseline) for line in table.lines]
        body = _grid(HEADINGS, rows)
        if table.contrasts:
            body += _grid(CONTRAST_HEADINGS, [contrast_cells(table, contrast) for contrast in table.contrasts])
        notes = [items_sentence(table)]
        if not table.watched:
            notes.append(headroom_sentence(table.headroom, bool(plan.headroom)))
        body += "".join(f'<p class="note">{escape(note)}</p>' for note in notes if note)
        sections.append(_section(title(table), body))
    if comparison.balances:
        body = _grid(balance_headings(comparison), balance_rows(comparison))
        sections.append(_section("Gain and forgetting", body))
    return sections


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>\n"


def _grid(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    words = [all(isinstance(row[column][1], str) for row in rows) for column in range(len(headings))]
    head = "".join(map(_heading, headings, words))
    body = "".join("<tr>" + "".join(map(_cell, row, words)) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _heading(name: str, word: bool) -> str:
    return f'<th scope="col"{_classes(WORD * word)}><button type="button">{escape(name)}</button></th>'


def _cell(cell: Cell, word: bool) -> str:
    shown, value = cell
    mark = shown if shown in MEANINGS or shown in ("baseline", "headroom") else ""
    sorted_by = "" if value is None else escape(str(value))
    return f'<td{_classes(WORD * word, mark)} data-value="{sorted_by}">{escape(shown)}</td>'


def _classes(*names: str) -> str:
    used = " ".join(name for name in names if name)
    return f' class="{used}"' if used else ""


def _picture(name: str, light: bytes, dark: bytes) -> str:
    heading = TITLES[name]
    return f"""<section><h2>{heading}</h2>
<picture><source media="(prefers-color-scheme: dark)" srcset="{data_uri(dark)}">
<img alt="{heading}" src="{data_uri(light)}"></picture></section>
"""


def _reading() -> str:
    return (
        "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in READING.items()) + "</dl>"
    )
