"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from localora.lab.compare.comparison import Comparison
from localora.lab.compare.headroom import headroom_sentence
from localora.lab.compare.plan import Plan
from localora.lab.compare.tables import Table
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
    direction,
    headline,
    items_sentence,
    line_cells,
    plain,
    primary_rows,
    problems,
    rate_rows,
    summary,
)


def render_markdown(comparison: Comparison, pictures: Sequence[tuple[str, str]]) -> str:
    """`pictures` are (file name, title)."""
    plan = comparison.resolved.plan
    said = headline(comparison)
    parts = [f"# {comparison.resolved.name}", f"{said[0].upper()}{said[1:]}.", plain(summary(comparison)) + "."]
    if found := problems(comparison):
        parts += ["## Before you read on", "\n".join(f"- {plain(line)}" for line in found)]
    if rows := primary_rows(comparison):
        parts += ["## Primary comparisons", _grid(PRIMARY_HEADINGS, rows)]
    for table in comparison.tables:
        parts += [f"## {plain(title(table))}", _lines(table, plan.baseline)]
        if table.contrasts:
            parts.append(_grid(CONTRAST_HEADINGS, [contrast_cells(table, contrast) for contrast in table.contrasts]))
        parts += [note for note in (items_sentence(table), _headroom(table, plan)) if note]
    if comparison.balances:
        parts += ["## Gain and forgetting", _grid(balance_headings(comparison), balance_rows(comparison))]
    parts += ["## Learning rates", _grid(RATE_HEADINGS, rate_rows(comparison))]
    parts += ["## Costs and ranks", _grid(COST_HEADINGS, cost_rows(comparison))]
    parts += ["## Pictures", "\n\n".join(f"![{caption}]({name})" for name, caption in pictures)]
    parts += ["## How to read it", "\n".join(f"- **{term}**: {text}" for term, text in READING.items())]
    return "\n\n".join(parts) + "\n"


def title(table: Table) -> str:
    return f"{table.task}: {table.measure} ({direction(table)}; a difference below {table.margin:g} is a tie)"


def _headroom(table: Table, plan: Plan) -> str:
    return "" if table.watched else headroom_sentence(table.headroom, bool(plan.headroom))


def _lines(table: Table, baseline: str) -> str:
    return _grid(HEADINGS, [line_cells(table, line, baseline) for line in table.lines])


def _grid(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{'|'.join([' --- '] + [' ---: '] * (len(headings) - 1))}|"]
    lines += [f"| {' | '.join(plain(shown).replace('|', chr(92) + '|') for shown, _ in row)} |" for row in rows]
    return "\n".join(lines)
