"""What `train`, `quickstart` and `evaluate` print at their end: a table, and where everything is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from localora.lab.evaluation.tasks import TaskResult
from localora.lab.progress import say
from localora.lab.recipe.methods import METHOD_CLASSES, LocalizedMethod
from localora.lab.training.record import Evaluation, RunRecord


def comparison_table(records: Sequence[RunRecord], title: str) -> Table:
    """One line a run: parameters, test loss and score before and after, seconds, memory; below, what each stores."""
    table = Table(title=f"{title} (before > after training)", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    score = next((r.before.score_name for r in records if r.before.score_name), None)
    table.add_column("method", no_wrap=True)
    for name in ("params", "of LoRA", "test loss", *([score] if score else []), "time", "memory"):
        table.add_column(name, justify="right")
    for record in records:
        own, lora = record.parameters.trainable, record.parameters.lora_same_r
        before, after = record.before, record.after
        cells = [
            record.method,
            f"{own:,}",
            f"{own / lora:.1%}",
            f"{before.loss:.3f} > {after.loss:.3f}" if after else "-",
        ]
        if score:
            cells.append(_score(before, after))
        table.add_row(*cells, f"{record.seconds.get('train', 0.0):.0f} s", f"{record.peak_memory_mib / 1024:.1f} GiB")
    table.caption, table.caption_justify = "; ".join(_kept(record) for record in records), "left"
    return table


def _kept(record: RunRecord) -> str:
    """Stored parameters and rank, which events raise."""
    parameters = record.parameters
    rank = f", rank {parameters.rank}" if parameters.rank else ""
    return f"{record.method} stores {parameters.stored or parameters.trainable:,} parameters{rank}"


def _score(before: Evaluation, after: Evaluation | None) -> str:
    """Counts, since 3 > 11 of 40 says more than 7.5 % > 27.5 %."""
    if after is None or before.score is None:
        return "-"
    return f"{sum(before.right)} > {sum(after.right)} of {after.score_examples}"


def print_record(record: RunRecord, console: Console) -> None:
    """The end of `localora train`: the table, then where everything is."""
    folder = record.recipe["output"]["folder"]
    console.print(comparison_table([record], f"{record.data['name']}, {record.recipe['model']['name']}"))
    for line in closing_lines(record, folder):
        say(console, line)


def closing_lines(record: RunRecord, folder: str) -> list[str]:
    """Where the adapter or the model, its export, the pictures and the record are, and what the verification found."""
    lines, section = [], record.recipe["method"]
    result = "model" if record.method == "full" else "adapter"
    lines.append(f"{result:<13}{folder}/{result}")
    if record.export is not None:
        lines.append(f"plain LoRA   {folder}/{record.export['folder']} ({export_line(record.export)})")
    if record.recipe["output"]["plots"]:
        placed = issubclass(METHOD_CLASSES[record.method], LocalizedMethod) and section.get("global_share") != 1
        names = ["loss.png", *(["placement.png"] if placed else [])]
        lines.append(f"pictures     {', '.join(f'{folder}/{name}' for name in names)}")
    lines.append(f"record       {folder}/run.json")
    return lines


def export_line(export: dict[str, Any]) -> str:
    """The verification: what stock PEFT makes of the exported adapter, beside our own."""
    verdict = "verified with stock PEFT" if export["verified"] else "NOT VERIFIED: please report this"
    return (
        f"rank {export['rank']}, {verdict}: dW differs by {export['delta_error']:.0e}, logits by "
        f"{export['logit_error']:.0e} of the largest in {export['dtype']}"
    )


def print_results(results: Sequence[TaskResult], title: str, console: Console) -> None:
    """Accuracy and the loss of the reference answers, each with its 95 % interval; then why something was not run."""
    title = f"{title}, 95 % interval in brackets"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", no_wrap=True)
    for name in ("items", "accuracy %", "reference nats/token", "time"):
        table.add_column(name, justify="right")
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


def _value(value: float, interval: tuple[float, float], form: str, scale: float = 1.0) -> str:
    middle, low, high = (form.format(number * scale) for number in (value, *interval))
    return f"{middle} [{low}, {high}]"
