"""The report's short form for a terminal: a table a task and measure, headroom below it, and the finding."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from localora.lab.compare.comparison import Comparison
from localora.lab.compare.headroom import headroom_sentence
from localora.lab.progress import say
from localora.lab.report.comparison.markdown import title
from localora.lab.report.comparison.text import (
    HEADINGS,
    balance_headings,
    balance_rows,
    contrast_cells,
    headline,
    items_sentence,
    line_cells,
    primary_rows,
    problems,
)

SHOWN = ("method", "verdict", "mean", "difference", "interval", "learning rate")  # 80 columns wide


def print_comparison(comparison: Comparison, console: Console) -> None:
    plan = comparison.resolved.plan
    for (task, _), (measure, _), (pair, _), (verdict, _), (mean, _), (interval, _), *_ in primary_rows(comparison):
        say(console, f"PRIMARY {task} {measure}, {pair}: {mean} {interval}, {verdict}")
    columns = [HEADINGS.index(name) for name in SHOWN]
    for found in comparison.tables:
        table = Table(title=title(found), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in SHOWN:
            table.add_column(name, justify="left" if name in ("method", "verdict") else "right", no_wrap=True)
        for line in found.lines:
            cells = line_cells(found, line, plan.baseline)
            table.add_row(*(cells[column][0].replace("[", r"\[") for column in columns))
        console.print(table)
        for contrast in found.contrasts:
            (pair, _), (verdict, _), (mean, _), (interval, _), *_ = contrast_cells(found, contrast)
            say(console, f"{pair}: {mean} {interval}, {verdict}")
        if note := items_sentence(found):
            say(console, note)
        if not found.watched:
            say(console, headroom_sentence(found.headroom, bool(plan.headroom)))
    for (task, _), (method, _), *values in balance_rows(comparison):
        named = zip(balance_headings(comparison)[2:], values, strict=True)
        say(console, f"{task} {method}: " + ", ".join(f"{name} {shown}" for name, (shown, _) in named))
    for problem in problems(comparison):
        say(console, problem)
    say(console, headline(comparison))
