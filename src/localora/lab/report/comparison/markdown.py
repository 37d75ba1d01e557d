"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from localora.lab.compare.comparison import Comparison
from localora.lab.report.comparison.reading import READING
from localora.lab.report.comparison.sections import Grid, headline, problems, sections, summary


def render_markdown(comparison: Comparison, pictures: Sequence[tuple[str, str]]) -> str:
    """`pictures` are (file name, title)."""
    said = headline(comparison)
    parts = [f"# {comparison.resolved.name}", f"{said[0].upper()}{said[1:]}.", _plain(summary(comparison)) + "."]
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
