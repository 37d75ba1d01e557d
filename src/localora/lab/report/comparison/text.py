"""How numbers are written in every form of the report."""

from __future__ import annotations

from html import escape

from localora.lab.compare.comparison import Comparison
from localora.lab.compare.plan import Contender
from localora.lab.compare.statistics.verdict import Judged
from localora.lab.compare.tables import Contrast, Line, Table

HEADINGS = (
    "method", "verdict", "mean", "sd", "difference", "interval", "p (Holm)", "p (tie)", "McNemar by seed",
    "learning rate", "trainable",
)  # fmt: skip
CONTRAST_HEADINGS = ("contrast", "verdict", "difference", "interval", "p (Holm)", "p (tie)")
PRIMARY_HEADINGS = ("task", "measure", *CONTRAST_HEADINGS)
COST_HEADINGS = (
    "task", "method", "training, s", "calibration, s", "peak memory, MiB", "trainable", "stored", "exported rank",
    "effective rank", "stable rank",
)  # fmt: skip
RATE_HEADINGS = ("task", "method", "chosen", "plateau", "how")

Cell = tuple[str, float | str | None]  # what is shown, what is sorted by


def line_cells(table: Table, line: Line, baseline: str) -> list[Cell]:
    """One cell a heading."""
    c = line.contender
    digits = 3 if table.higher_is_better else 4
    judged = line.judged
    if judged is None:
        verdict = "baseline" if c.label == baseline else "headroom" if c.role == "headroom" else "too few seeds"
        compared: list[Cell] = [("-", None)] * 5
    else:
        verdict = judged.verdict
        exact = sorted(line.mcnemar)
        by_seed = f"{exact[0]:.2f} to {exact[-1]:.2f}" if exact else "-"
        compared = [*_judged_cells(judged, digits), (by_seed, exact[0] if exact else None)]
    return [
        (name_of(c), c.label),
        (verdict, verdict),
        (f"{line.mean:.{digits}f}", line.mean),
        optional(line.sd, f".{digits}f"),
        *compared,
        (f"{line.rate:g}", line.rate),
        (f"{c.trainable:,} ({share_of(c)})", c.trainable),
    ]


def contrast_cells(table: Table, contrast: Contrast) -> list[Cell]:
    """One cell a heading of CONTRAST_HEADINGS."""
    said, verdict = f"{contrast.label} over {contrast.base}", contrast.judged.verdict
    return [(said, said), (verdict, verdict), *_judged_cells(contrast.judged, 3 if table.higher_is_better else 4)]


def primary_rows(comparison: Comparison) -> list[list[Cell]]:
    """One row a primary pair and table, of PRIMARY_HEADINGS."""
    return [
        [(table.task, table.task), (table.measure, table.measure), *contrast_cells(table, contrast)]
        for table in comparison.tables
        for contrast in table.primary
    ]


def balance_headings(comparison: Comparison) -> tuple[str, ...]:
    """Of the table of what was gained and what was forgotten."""
    return ("task", "method", "gain", *(f"{name}: loss" for name in comparison.resolved.plan.watch))


def balance_rows(comparison: Comparison) -> list[list[Cell]]:
    return [
        [
            (balance.task, balance.task),
            (name_of(balance.contender), balance.contender.label),
            _with_spread(balance.gain),
            *(
                _with_spread(balance.changes[name]) if name in balance.changes else ("-", None)
                for name in comparison.resolved.plan.watch
            ),
        ]
        for balance in comparison.balances
    ]


def _with_spread(value: tuple[float, float | None]) -> Cell:
    mean, sd = value
    return f"{mean:+.4f}" + (f" (sd {sd:.4f})" if sd is not None else ""), mean


def items_sentence(table: Table) -> str:
    """Of what the differences are a sample."""
    if not any(line.judged for line in table.lines) and not table.contrasts and not table.primary:
        return ""
    if table.items is None:
        return (
            "Test items count as fixed: the records hold none, so the intervals say nothing of other items, "
            "and differences are found too often."
        )
    return f"Seeds and the {table.items} test items are both counted as samples."


def plain(text: str) -> str:
    """Words from outside, for Markdown: no HTML, no link."""
    return escape(text, quote=False).replace("](", "]\\(")


def _judged_cells(judged: Judged, digits: int) -> list[Cell]:
    d = judged.difference
    return [
        (f"{d.mean:+.{digits}f}", d.mean),
        (f"[{d.low:+.{digits}f}, {d.high:+.{digits}f}]", d.high - d.low),
        (f"{judged.p_holm:.3f}", judged.p_holm),
        (f"{judged.p_tie:.3f}", judged.p_tie),
    ]


def cost_rows(comparison: Comparison) -> list[list[Cell]]:
    return [
        [
            (costs.task, costs.task),
            (name_of(costs.contender), costs.contender.label),
            (f"{costs.train_seconds:.1f}", costs.train_seconds),
            optional(costs.calibrate_seconds, ".1f"),
            (f"{costs.peak_memory_mib:.0f}", costs.peak_memory_mib),
            (f"{costs.trainable:,}", costs.trainable),
            (f"{costs.stored:,}", costs.stored),
            _rank(costs.exported_rank, costs.padded_rank),
            optional(costs.effective_rank, ".1f"),
            optional(costs.stable_rank, ".1f"),
        ]
        for costs in comparison.costs
    ]


def _rank(exact: int | None, padded: int | None) -> Cell:
    shown, value = optional(exact, "d")
    return (shown if padded is None else f"{shown} (file: {padded})"), value


def rate_rows(comparison: Comparison) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for (task, label), choice in comparison.choices.items():
        plateau = comparison.plateau(task, label) if choice.rate is not None else []
        width = max(plateau) / min(plateau) if plateau else None
        shown = "-" if width is None else f"{min(plateau):g} to {max(plateau):g} (x {width:.3g})"
        rows.append(
            [
                (task, task),
                (name_of(comparison.resolved.contender(label)), label),
                ("-", None) if choice.rate is None else (f"{choice.rate:g}", choice.rate),
                (shown, width),
                (choice.sentence(), choice.sentence()),
            ]
        )
    return rows


def name_of(contender: Contender) -> str:
    label = contender.budget_label
    return contender.label if label is None or contender.role == "headroom" else f"{contender.label} [{label}]"


def share_of(contender: Contender) -> str:
    return f"{contender.budget_ratio:.1%}"


def optional(value: float | None, form: str) -> Cell:
    return ("-", None) if value is None else (format(value, form), value)


def direction(table: Table) -> str:
    return "higher is better" if table.higher_is_better else "lower is better"


def problems(comparison: Comparison) -> list[str]:
    """Runs without a result, what remains to be done, and what is not alike."""
    lines = list(comparison.notes)
    for spec in comparison.state.diverged:
        lines.append(f"{spec.folder}: diverged, the loss stopped being a number")
    for spec in comparison.state.failed:
        failure = comparison.outcomes[spec].failure
        said = failure.reason if failure else ""
        lines.append(f"{spec.folder}: FAILED after {failure.attempts if failure else 0} tries: {said}")
    if comparison.left:
        lines.append(f"{comparison.left} run(s) are still to be made; every number here is provisional")
    return lines


def summary(comparison: Comparison) -> str:
    plan = comparison.resolved.plan
    return (
        f"{plan.model.name}, r {plan.r}, {len(comparison.state.finished)} finished runs in "
        f"{comparison.seconds / 3600:.1f} hours of one process, seeds {', '.join(map(str, plan.seeds))}, "
        f"on {', '.join(comparison.machines) or 'nothing yet'}"
    )


def headline(comparison: Comparison) -> str:
    """The finding in a sentence: the primary pairs first, then all tables."""
    primary = [contrast.judged for table in comparison.tables for contrast in table.primary]
    trained = [table for table in comparison.tables if not table.watched]
    judged = [line.judged for table in trained for line in table.lines if line.judged is not None]
    parts = [f"of {len(primary)} primary comparisons: {_counted(primary)}"] if primary else []
    if judged:
        against = comparison.resolved.plan.baseline
        parts.append(f"against {against}, of {len(judged)} comparisons: {_counted(judged)}")
    return "; ".join(parts) or "no method could be judged yet"


def _counted(judged: list[Judged]) -> str:
    words = [one.verdict for one in judged]
    return ", ".join(f"{word} {words.count(word)}" for word in ("better", "tie", "worse", "undecided") if word in words)
