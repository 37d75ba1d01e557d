"""The report's short form for a terminal: a table a task and measure, headroom below it, and the finding."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from localora.lab.compare.comparison import Comparison
from localora.lab.progress import say
from localora.lab.report.comparison.sections import Grid, headline, problems, sections

SHOWN = ("method", "verdict", "mean", "difference", "interval", "learning rate")  # 80 columns wide


def print_comparison(comparison: Comparison, console: Console) -> None:
    for section in sections(comparison):
        if not section.short:
            continue
        for number, grid in enumerate(section.grids):
            if "mean" in grid.headings:
                console.print(_table(section.title, grid))
                continue
            for line in (*([f"{section.title}:"] if number == 0 else []), *_lines(grid)):
                say(console, line)
        for note in section.notes:
            say(console, note)
    for line in (*problems(comparison), headline(comparison)):
        say(console, line)


def _table(title: str, grid: Grid) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in SHOWN:
        table.add_column(name, justify="left" if name in ("method", "verdict") else "right", no_wrap=True)
    for row in grid.rows:
        table.add_row(*(row[grid.headings.index(name)][0].replace("[", r"\[") for name in SHOWN))
    return table


def _lines(grid: Grid) -> list[str]:
    """Tables of few rows and long words, as sentences."""
    lines = []
    for row in grid.rows:
        cells = {name: shown for name, (shown, _) in zip(grid.headings, row, strict=True)}
        first = ", ".join(cells.pop(name) for name in ("task", "measure", "method", "contrast") if name in cells)
        if "verdict" in cells:
            lines.append(f"{first}: {cells['difference']} {cells['interval']}, {cells['verdict']}")
        else:
            lines.append(f"{first}: " + ", ".join(f"{name} {shown}" for name, shown in cells.items()))
    return lines
