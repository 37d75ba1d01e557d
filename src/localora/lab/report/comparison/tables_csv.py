"""The tables' numbers as CSV, unrounded: a line a method of each table, and a line a pair that the plan names."""

from __future__ import annotations

import csv
import io
from typing import Any

from localora.lab.compare.comparison import Comparison
from localora.lab.compare.statistics.verdict import Judged

COLUMNS = (
    "task", "measure", "kind", "method", "over", "budget_label", "trainable", "learning_rate", "seeds", "mean", "sd",
    "difference", "low", "high", "p", "p_holm", "p_tie", "verdict",
)  # fmt: skip


def summary_csv(comparison: Comparison) -> str:
    """`kind` is method, headroom, primary or contrast."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for table in comparison.tables:
        of = {"task": table.task, "measure": table.measure}
        for line in table.lines:
            c, over = line.contender, comparison.resolved.plan.baseline if line.judged else ""
            own: dict[str, Any] = {
                "kind": c.role,
                "method": c.label,
                "over": over,
                "budget_label": c.budget_label or "",
            }
            own |= {"trainable": c.trainable, "learning_rate": line.rate, "seeds": len(line.values)}
            own |= {"mean": line.mean, "sd": "" if line.sd is None else line.sd}
            writer.writerow(_inert(of | own | _numbers(line.judged)))
        for kind, contrasts in (("primary", table.primary), ("contrast", table.contrasts)):
            for pair in contrasts:
                own = {"kind": kind, "method": pair.label, "over": pair.base}
                writer.writerow(_inert(of | own | _numbers(pair.judged)))
    return text.getvalue()


def _numbers(judged: Judged | None) -> dict[str, Any]:
    if judged is None:
        return {}
    d = judged.difference
    found = {"difference": d.mean, "low": d.low, "high": d.high, "p": d.p}
    return found | {"p_holm": judged.p_holm, "p_tie": judged.p_tie, "verdict": judged.verdict}


def _inert(row: dict[str, Any]) -> dict[str, Any]:
    """Words from outside begin with an apostrophe where a spreadsheet would take them for a formula."""
    harmful = ("=", "+", "-", "@", "\t", "\r")
    return {key: f"'{x}" if isinstance(x, str) and x.startswith(harmful) else x for key, x in row.items()}
