"""The report's pictures as PNG bytes, for a light and a dark page."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from localora.lab.compare.comparison import Comparison, Table
from localora.lab.compare.measures import LOSS
from localora.lab.pages.theme import INK, Theme, png

COLOURS = {  # told apart by colour-blind readers too
    "light": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f3c8d", "#5b5b5b"),
    "dark": ("#56b4e9", "#ff8c42", "#2fd6a3", "#e6a5cb", "#f0c24b", "#9ad0f5", "#c9a0dc", "#b0b0b0"),
}
MARKERS = "osD^vPX*<>hp"
TITLES = {
    "differences": "Difference from the baseline, with its interval; the band is a tie",
    "learning_rates": "Validation loss by learning rate: who was tuned, and how wide each plateau is",
    "parameters": "Test measures by trainable parameters",
    "costs": "Time and memory of training",
}


def draw_all(comparison: Comparison, theme: Theme) -> dict[str, bytes]:
    """Name -> PNG; pictures for which there are no data yet are left out."""
    pictures: dict[str, tuple[bool, Callable[[Comparison, Theme], Figure]]] = {
        "differences": (any(line.judged for table in comparison.tables for line in table.lines), draw_differences),
        "learning_rates": (bool(comparison.choices), draw_rates),
        "parameters": (bool(comparison.tables), draw_parameters),
        "costs": (bool(comparison.costs), draw_costs),
    }
    return {name: png(partial(draw, comparison, theme), theme) for name, (drawn, draw) in pictures.items() if drawn}


def draw_differences(comparison: Comparison, theme: Theme) -> Figure:
    """A panel a table: a dot and an interval a method; to the right is better."""
    tables = [table for table in comparison.tables if any(line.judged for line in table.lines)]
    most = max(sum(line.judged is not None for line in table.lines) for table in tables)
    figure, grid = _grid(len(tables), height=1.3 + 0.3 * most)
    for axes, table in zip(grid, tables, strict=False):
        lines = [line for line in table.lines if line.judged is not None]
        sign = 1 if table.higher_is_better else -1
        axes.axvspan(-table.margin, table.margin, color=INK[theme], alpha=0.1, linewidth=0)
        axes.axvline(0, color=INK[theme], linewidth=1)
        for place, line in enumerate(lines):
            assert line.judged is not None
            d = line.judged.difference
            low, high = sorted((sign * d.low, sign * d.high))
            colour = _colour(comparison, line.contender.label, theme)
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot(sign * d.mean, place, "o", color=colour)
        axes.set_yticks(range(len(lines)), [line.contender.label for line in lines])
        axes.invert_yaxis()
        axes.set_title(f"{table.task}: {table.measure}", fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(f"better than {comparison.resolved.plan.baseline} by")
        axes.grid(axis="x", alpha=0.2)
    return figure


def draw_rates(comparison: Comparison, theme: Theme) -> Figure:
    """A panel a task: a line a method over the rates it tried; the ring is the choice, a cross a diverged run."""
    tasks = list(comparison.resolved.plan.tasks)
    figure, grid = _grid(len(tasks), height=4.2)
    for axes, task in zip(grid, tasks, strict=False):
        for (of, label), choice in comparison.choices.items():
            if of != task:
                continue
            sound = {rate: loss for rate, loss in choice.tried.items() if math.isfinite(loss)}
            colour = _colour(comparison, label, theme)
            dashed = "--" if comparison.resolved.contender(label).role == "headroom" else "-"
            marker = _marker(comparison, label)
            axes.plot(list(sound), list(sound.values()), dashed, marker=marker, color=colour, ms=5, lw=1.4, label=label)
            if choice.rate is not None:
                axes.plot(choice.rate, sound[choice.rate], "o", ms=11, mfc="none", mec=colour, mew=1.6)
            top = max(sound.values(), default=0.0)
            for rate in choice.tried.keys() - sound.keys():
                axes.plot(rate, top, "x", color=colour)
        axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss")
        rates = sorted({rate for choice in comparison.choices.values() for rate in choice.tried})
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(task, fontsize="medium")
        axes.grid(alpha=0.2)
    _legend(figure, grid[0])
    return figure


def draw_parameters(comparison: Comparison, theme: Theme) -> Figure:
    """A panel a table: mean and spread over seeds against trainable parameters; headroom runs are to the right."""
    figure, grid = _grid(len(comparison.tables), height=3.8)
    for axes, table in zip(grid, comparison.tables, strict=False):
        _parameters(axes, comparison, table, theme)
    _legend(figure, grid[0])
    return figure


def _parameters(axes: Axes, comparison: Comparison, table: Table, theme: Theme) -> None:
    at_budget = [line for line in table.lines if line.contender.role == "method"]
    for line in table.lines:
        # Those with equal budgets would lie on top of each other: spread them a little.
        shift = 1.0 if line not in at_budget else 0.86 + 0.28 * at_budget.index(line) / max(1, len(at_budget) - 1)
        axes.errorbar(
            line.contender.trainable * shift,
            line.mean,
            yerr=line.sd or 0.0,
            fmt=_marker(comparison, line.contender.label),
            color=_colour(comparison, line.contender.label, theme),
            ms=6,
            capsize=2,
            label=line.contender.label,
        )
    axes.set(xscale="log", xlabel="trainable parameters (equal ones spread)", ylabel=table.measure)
    counts = sorted({line.contender.trainable for line in table.lines})
    axes.set_xticks(counts, [f"{count:,}" for count in counts], rotation=30, fontsize="small")
    axes.xaxis.set_minor_formatter(NullFormatter())
    if table.measure == LOSS:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3f}"))
    axes.set_title(table.task, fontsize="medium")
    axes.grid(alpha=0.2)


def draw_costs(comparison: Comparison, theme: Theme) -> Figure:
    """Seconds of training and peak memory of each method, the first task's."""
    first = comparison.costs[0].task
    costs = [c for c in comparison.costs if c.task == first]
    names = [c.contender.label for c in costs]
    colours = [_colour(comparison, name, theme) for name in names]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 1.2 + 0.3 * len(costs)), layout="constrained", sharey=True)
    left.barh(names, [c.train_seconds for c in costs], color=colours)
    left.set_xlabel(f"training, seconds ({first})")
    right.barh(names, [c.peak_memory_mib for c in costs], color=colours)
    right.set_xlabel("peak memory, MiB")
    left.invert_yaxis()
    return figure


def _grid(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(2, panels)
    rows = math.ceil(panels / columns)
    size = (5.2 * columns + (2 if columns == 1 else 0), height * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    axes = list(grid.flat)
    for unused in axes[panels:]:
        unused.set_axis_off()
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small")


def _place(comparison: Comparison, label: str) -> int:
    return [contender.label for contender in comparison.resolved.contenders].index(label)


def _colour(comparison: Comparison, label: str, theme: Theme) -> str:
    return COLOURS[theme][_place(comparison, label) % len(COLOURS[theme])]


def _marker(comparison: Comparison, label: str) -> str:
    return MARKERS[_place(comparison, label) % len(MARKERS)]
