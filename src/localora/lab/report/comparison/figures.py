"""The report's pictures as PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from colorsys import hls_to_rgb

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from localora.lab.compare.comparison import Comparison
from localora.lab.pages.shell import INK, png

COLOURS = (  # the first eight told apart by colour-blind readers too; markers and labels tell all apart
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f3c8d", "#5b5b5b",
    "#8b0000", "#3cb44b", "#000080", "#ff69b4", "#808000", "#20b2aa", "#a0522d", "#9370db",
)  # fmt: skip
MARKERS = "osD^vPX*<>hp"
TITLES = {
    "differences": "Difference from the baseline, with its interval; the band is a tie",
    "learning_rates": "Validation loss by learning rate: who was tuned, and how wide each plateau is",
    "frontier": "What was gained on the task, and what watched tasks lost for it",
}


def draw_all(comparison: Comparison) -> dict[str, bytes]:
    """Name -> PNG; pictures for which there are no data yet are left out."""
    pictures: dict[str, tuple[bool, Callable[[Comparison], Figure]]] = {
        "differences": (any(line.judged for table in comparison.tables for line in table.lines), draw_differences),
        "learning_rates": (bool(comparison.choices), draw_rates),
        "frontier": (bool(comparison.balances), draw_frontier),
    }
    return {name: png(draw(comparison)) for name, (drawn, draw) in pictures.items() if drawn}


def draw_differences(comparison: Comparison) -> Figure:
    """A panel a table: a dot and an interval a method, with the sign that the table has."""
    tables = [table for table in comparison.tables if any(line.judged for line in table.lines)]
    most = max(sum(line.judged is not None for line in table.lines) for table in tables)
    figure, grid = _grid(len(tables), height=1.3 + 0.3 * most)
    for axes, table in zip(grid, tables, strict=False):
        lines = [line for line in table.lines if line.judged is not None]
        axes.axvspan(-table.margin, table.margin, color=INK, alpha=0.1, linewidth=0)
        axes.axvline(0, color=INK, linewidth=1)
        for place, line in enumerate(lines):
            assert line.judged is not None
            d = line.judged.difference
            colour = _colour(comparison, line.entry.label)
            axes.plot([d.low, d.high], [place, place], color=colour, linewidth=2)
            axes.plot(d.mean, place, "o", color=colour)
        axes.set_yticks(range(len(lines)), [line.entry.label for line in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_title(f"{table.task}: {table.measure}", fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        side = "better \u2192" if table.higher_is_better else "\u2190 better"
        axes.set_xlabel(f"minus {comparison.resolved.plan.baseline}   ({side})")
        axes.grid(axis="x", alpha=0.2)
    return figure


def draw_rates(comparison: Comparison) -> Figure:
    """A panel a task: a line a method over the rates it tried; the ring is the choice, a cross a diverged run."""
    tasks = list(comparison.resolved.plan.tasks)
    figure, grid = _grid(len(tasks), height=4.2)
    for axes, task in zip(grid, tasks, strict=False):
        for (of, label), choice in comparison.choices.items():
            if of != task:
                continue
            sound = {rate: loss for rate, loss in choice.tried.items() if math.isfinite(loss)}
            colour = _colour(comparison, label)
            dashed = "--" if comparison.resolved.entry(label).role == "headroom" else "-"
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


def draw_frontier(comparison: Comparison) -> Figure:
    """A panel a task and watched task: up is a larger gain, left is less forgetting; bars are the spread over seeds."""
    watched = list(comparison.resolved.plan.watch)
    tasks = list(dict.fromkeys(balance.task for balance in comparison.balances))
    panels = [(task, name) for task in tasks for name in watched]
    figure, grid = _grid(len(panels), height=4.0)
    for axes, (task, name) in zip(grid, panels, strict=False):
        for balance in comparison.balances:
            if balance.task != task or name not in balance.changes:
                continue
            label, (lost, lost_sd), (gain, gain_sd) = balance.entry.label, balance.changes[name], balance.gain
            axes.errorbar(
                lost,
                gain,
                xerr=lost_sd or 0.0,
                yerr=gain_sd or 0.0,
                fmt=_marker(comparison, label),
                color=_colour(comparison, label),
                ms=6,
                capsize=2,
                label=label,
            )
        axes.axvline(0, color=INK, linewidth=1)
        axes.set(xlabel=f"loss of {name} grew by   (\u2190 better)", ylabel="test loss fell by   (better \u2192)")
        axes.set_title(task, fontsize="medium")
        axes.grid(alpha=0.2)
    _legend(figure, grid[0])
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
    return [entry.label for entry in comparison.resolved.entries].index(label)


def _colour(comparison: Comparison, label: str) -> str:
    """One a method, however many there are."""
    place, known = _place(comparison, label), len(COLOURS)
    if place < known:
        return COLOURS[place]
    hue = (place - known) / max(1, len(comparison.resolved.entries) - known)
    return to_hex(hls_to_rgb(hue, 0.4, 0.55))


def _marker(comparison: Comparison, label: str) -> str:
    return MARKERS[_place(comparison, label) % len(MARKERS)]
