"""The console's side of `localora evaluate`: tables at the end."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from localora.lab.evaluation.harness import HarnessScore
from localora.lab.evaluation.tasks import TaskResult
from localora.lab.progress import say


def print_results(results: Sequence[TaskResult], title: str, console: Console) -> None:
    """Accuracy and the loss of the reference answers, each with its 95 % interval; then why something was not run."""
    table = _table(title, "task", "items", "accuracy %", "reference nats/token", "time")
    for result in results:
        accuracy = "not run"
        if result.value is not None and result.interval is not None:
            accuracy = _value(result.value, result.interval, "{:.1f}", 100)
        reference = _value(result.reference_loss, result.reference_interval, "{:.3f}")
        table.add_row(result.task, str(len(result.items)), accuracy, reference, f"{result.seconds:.0f} s")
    console.print(table)
    for note in dict.fromkeys(result.note for result in results if result.note):
        say(console, note)
    protections = dict.fromkeys(line for result in results for line in result.protections)
    if protections:
        say(console, "generated code ran in a sandbox: " + "; ".join(protections))


def print_harness_scores(scores: Sequence[HarnessScore], title: str, console: Console) -> None:
    """What lm-evaluation-harness measured, under its own names."""
    table = _table(title, "task", "metric", "items", "value")
    for score in scores:
        value = _value(score.value, score.interval, "{:.4f}") if score.interval else f"{score.value:.4f}"
        table.add_row(score.task, score.metric, str(score.count), value)
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"{title}, 95 % interval in brackets", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=number == 0)
    return table


def _value(value: float, interval: tuple[float, float], form: str, scale: float = 1.0) -> str:
    middle, low, high = (form.format(number * scale) for number in (value, *interval))
    return f"{middle} [{low}, {high}]"
