"""What `compare` prints: what it is going to do, and at its end the report's short form."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from localora.lab.compare.comparison import Comparison
from localora.lab.compare.plan import ResolvedPlan
from localora.lab.compare.schedule import Schedule, seconds_left
from localora.lab.compare.store import Store
from localora.lab.progress import duration_text, say
from localora.lab.report.comparison.sections import Grid, headline, name_of, problems, sections, share_of

SHOWN = ("method", "verdict", "mean", "difference", "interval", "learning rate")  # 80 columns wide
NO_ESTIMATE = "unknown until a run has finished: start the comparison, stop it with Ctrl-C after one, and ask again"


def print_preview(resolved: ResolvedPlan, state: Schedule, store: Store, slots: int | None, console: Console) -> None:
    """Each method with its parameters, learning rates and runs; then how many runs, and how long they will take.

    `slots` run at a time; None where a cluster decides.
    """
    plan = resolved.plan
    title = f"{resolved.name}: {plan.model.name}, {resolved.entries[0].budget:,} parameters (LoRA r {plan.r})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("learning rates")
    for name in ("parameters", "of LoRA", "done", "now", "later"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in resolved.entries:
        label = entry.label
        over = sum(spec.label == label for spec in (*state.finished, *state.diverged))
        due = sum(spec.label == label for spec in state.due)
        later = sum(runs for (_, of), runs in state.later.items() if of == label)
        rates = ", ".join(f"{rate:g}" for rate in entry.grid)
        counts = map(str, (over, due, later))
        table.add_row(name_of(entry), rates, f"{entry.trainable:,}", share_of(entry), *counts)
    console.print(table)
    over, later = len(state.finished) + len(state.diverged), sum(state.later.values())
    seeds, rate_seeds = (", ".join(map(str, some)) for some in (plan.seeds, plan.learning_rates.seeds))
    facts = {
        "tasks": ", ".join(plan.tasks),
        "steps": f"{plan.training.steps} a run",
        "seeds": f"{seeds}; {rate_seeds} to choose learning rates",
        "runs": f"{over} done, {len(state.due)} now, {later} later; while the best rate is at the grid's edge, up to "
        f"{plan.learning_rates.widen} more a method",
        "time": _time(state, store, slots),
        "folder": str(store.folder),
    }
    for name, text in facts.items():
        say(console, f"{name:8}{text}")


def _time(state: Schedule, store: Store, slots: int | None) -> str:
    seconds = seconds_left(state, store.read, slots=slots or 1)
    if seconds is None:
        return NO_ESTIMATE
    if slots is None:
        return f"about {duration_text(seconds)} left, one run at a time; divide by how many the cluster has room for"
    return f"about {duration_text(seconds)} left, {slots} run(s) at a time"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """A table a task and measure, headroom below it, and the finding."""
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
