"""How numbers are written in every form of the report."""

from __future__ import annotations

from localora.lab.compare.comparison import Comparison, Contrast, Line, Table
from localora.lab.compare.plan import Contender
from localora.lab.compare.statistics.verdict import Judged

HEADINGS = (
    "method", "verdict", "mean", "sd", "difference", "interval", "p (Holm)", "p (tie)", "McNemar by seed",
    "learning rate", "parameters", "of LoRA",
)  # fmt: skip
CONTRAST_HEADINGS = ("contrast", "verdict", "difference", "interval", "p (Holm)", "p (tie)")
COST_HEADINGS = (
    "task", "method", "training, s", "calibration, s", "peak memory, MiB", "exported rank", "effective rank",
    "stable rank",
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
        compared = [
            *_judged_cells(judged, digits),
            (
                ", ".join(f"{m.exact:.2f}" for m in line.mcnemar) or "-",
                min((m.exact for m in line.mcnemar), default=None),
            ),
        ]
    return [
        (name_of(c), c.label),
        (verdict, verdict),
        (f"{line.mean:.{digits}f}", line.mean),
        optional(line.sd, f".{digits}f"),
        *compared,
        (f"{line.rate:g}", line.rate),
        (f"{c.trainable:,}", c.trainable),
        (share_of(c), c.budget_ratio),
    ]


def contrast_cells(table: Table, contrast: Contrast) -> list[Cell]:
    """One cell a heading of CONTRAST_HEADINGS."""
    said, verdict = f"{contrast.label} over {contrast.base}", contrast.judged.verdict
    return [(said, said), (verdict, verdict), *_judged_cells(contrast.judged, 3 if table.higher_is_better else 4)]


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
            optional(costs.exported_rank, "d"),
            optional(costs.effective_rank, ".1f"),
            optional(costs.stable_rank, ".1f"),
        ]
        for costs in comparison.costs
    ]


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
    """The finding in a sentence, over all tables."""
    count: dict[str, int] = {}
    for table in comparison.tables:
        for line in table.lines:
            if line.judged is not None:
                count[line.judged.verdict] = count.get(line.judged.verdict, 0) + 1
    if not count:
        return "no method could be judged yet"
    parts = [f"{word} {count[word]}" for word in ("better", "tie", "worse", "undecided") if word in count]
    return f"against {comparison.resolved.plan.baseline}, of {sum(count.values())} comparisons: {', '.join(parts)}"
