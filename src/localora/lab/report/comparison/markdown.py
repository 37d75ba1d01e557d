"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from localora.lab.compare.comparison import Comparison, Table
from localora.lab.compare.headroom import headroom_sentence
from localora.lab.report.comparison.reading import READING
from localora.lab.report.comparison.text import (
    CONTRAST_HEADINGS,
    COST_HEADINGS,
    HEADINGS,
    RATE_HEADINGS,
    Cell,
    contrast_cells,
    cost_rows,
    direction,
    headline,
    line_cells,
    problems,
    rate_rows,
    summary,
)


def render_markdown(comparison: Comparison, pictures: Sequence[tuple[str, str]]) -> str:
    """`pictures` are (file name, title)."""
    plan = comparison.resolved.plan
    parts = [f"# {comparison.resolved.name}", f"{headline(comparison).capitalize()}.", summary(comparison) + "."]
    if found := problems(comparison):
        parts += ["## Before you read on", "\n".join(f"- {line}" for line in found)]
    for table in comparison.tables:
        parts += [f"## {title(table)}", _lines(table, plan.baseline)]
        if table.contrasts:
            parts.append(_grid(CONTRAST_HEADINGS, [contrast_cells(table, contrast) for contrast in table.contrasts]))
        parts.append(headroom_sentence(table.headroom, bool(plan.headroom)))
    parts += ["## Learning rates", _grid(RATE_HEADINGS, rate_rows(comparison))]
    parts += ["## Costs and ranks", _grid(COST_HEADINGS, cost_rows(comparison))]
    parts += ["## Pictures", "\n\n".join(f"![{caption}]({name})" for name, caption in pictures)]
    parts += ["## How to read it", "\n".join(f"- **{term}**: {text}" for term, text in READING.items())]
    return "\n\n".join(parts) + "\n"


def title(table: Table) -> str:
    return f"{table.task}: {table.measure} ({direction(table)}; a difference below {table.margin:g} is a tie)"


def _lines(table: Table, baseline: str) -> str:
    return _grid(HEADINGS, [line_cells(table, line, baseline) for line in table.lines])


def _grid(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{'|'.join([' --- '] + [' ---: '] * (len(headings) - 1))}|"]
    lines += [f"| {' | '.join(shown.replace('|', chr(92) + '|') for shown, _ in row)} |" for row in rows]
    return "\n".join(lines)
