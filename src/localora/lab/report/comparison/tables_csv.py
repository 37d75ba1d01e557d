"""The numbers as CSV: one file of the main tables, one of the contrasts, one of every run."""

from __future__ import annotations

import csv
import io
from typing import Any

from localora.lab.compare.comparison import Comparison
from localora.lab.compare.measures import measures

SUMMARY = (
    "task", "measure", "method", "role", "budget_label", "trainable", "budget_ratio", "learning_rate", "seeds", "mean",
    "sd", "difference", "low", "high", "p", "p_holm", "p_tie", "verdict",
)  # fmt: skip
CONTRASTS = (
    "kind",
    "task",
    "measure",
    "method",
    "over",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "p_tie",
    "verdict",
)
RUNS = (
    "stage", "task", "method", "steps", "learning_rate", "seed", "status", "validation_loss", "measure", "value",
    "train_seconds", "peak_memory_mib",
)  # fmt: skip


def summary_csv(comparison: Comparison) -> str:
    rows = []
    for table in comparison.tables:
        for line in table.lines:
            c, judged = line.contender, line.judged
            d = judged.difference if judged else None
            rows.append(
                [table.task, table.measure, c.label, c.role, c.budget_label, c.trainable, c.budget_ratio, line.rate]
                + [len(line.values), line.mean, line.sd]
                + ([d.mean, d.low, d.high, d.p] if d else [None] * 4)
                + ([judged.p_holm, judged.p_tie, judged.verdict] if judged else [None] * 3)
            )
    return _csv(SUMMARY, rows)


def contrasts_csv(comparison: Comparison) -> str:
    """A line a pair and measure, the primary ones first; the heading alone where the plan names no pairs."""
    rows = []
    pairs = [("primary", table, contrast) for table in comparison.tables for contrast in table.primary]
    pairs += [("contrast", table, contrast) for table in comparison.tables for contrast in table.contrasts]
    for kind, table, contrast in pairs:
        judged, d = contrast.judged, contrast.judged.difference
        row = [kind, table.task, table.measure, contrast.label, contrast.base, d.mean, d.low, d.high, d.p]
        rows.append([*row, judged.p_holm, judged.p_tie, judged.verdict])
    return _csv(CONTRASTS, rows)


def runs_csv(comparison: Comparison) -> str:
    """A line a run of the sweeps; a line a run and measure of the final ones."""
    rows: list[list[Any]] = []
    for spec, outcome in comparison.outcomes.items():
        head = [spec.stage, spec.task, spec.label, spec.steps, spec.rate, spec.seed, outcome.status]
        record = outcome.record if outcome.status == "finished" else None
        if record is None:
            rows.append([*head, *[None] * 5])
            continue
        validation = record.curve.held_out[-1].loss if record.curve.held_out else None
        found = measures(outcome).values() if spec.stage == "final" else ()
        values: list[tuple[Any, Any]] = [(measure.name, measure.value) for measure in found] or [(None, None)]
        rows += [[*head, validation, *value, record.seconds.get("train"), record.peak_memory_mib] for value in values]
    return _csv(RUNS, rows)


def _inert(cell: Any) -> Any:
    """Words from outside begin with an apostrophe where a spreadsheet would take them for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _csv(headings: tuple[str, ...], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows([_inert(cell) for cell in row] for row in rows)
    return text.getvalue()
