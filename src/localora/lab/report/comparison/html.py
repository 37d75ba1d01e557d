"""The report as one self-contained page: pictures inlined, no request to anywhere, readable in light and dark."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from localora.lab.compare.comparison import Comparison
from localora.lab.compare.statistics.verdict import MEANINGS
from localora.lab.pages.shell import picture, table, whole_page
from localora.lab.report.comparison.figures import TITLES
from localora.lab.report.comparison.reading import READING
from localora.lab.report.comparison.sections import Section, headline, problems, sections, summary

MARKED = {*MEANINGS, "baseline", "headroom"}  # words that have a colour


def render_page(comparison: Comparison, light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    """The page, given each picture as PNG bytes for both themes."""
    reading = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in READING.items())
    parts = [
        _head(comparison),
        *map(_section, sections(comparison)),
        *(picture(TITLES[name], light[name], dark[name]) for name in light),
        f"<section><h2>How to read it</h2><dl>{reading}</dl></section>",
    ]
    style = files("localora.lab.report.comparison").joinpath("page.css").read_text(encoding="utf-8")
    return whole_page(f"Comparison: {comparison.resolved.name}", parts, style)


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
    body = "".join(table(grid.headings, grid.rows, MARKED) for grid in section.grids)
    body += "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
    return f"<section><h2>{escape(section.title)}</h2>{body}</section>\n"
