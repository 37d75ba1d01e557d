"""What the report says, as sections of tables and notes: every form of it (page, Markdown, terminal) shows these."""

from __future__ import annotations

from dataclasses import dataclass, field

from localora.lab.compare.comparison import Comparison
from localora.lab.compare.plan import Entry
from localora.lab.compare.statistics.verdict import Judged
from localora.lab.compare.tables import Contrast, Line, Table
from localora.lab.pages.shell import Cell

COMPARED = ("verdict", "difference", "interval", "p (Holm)", "p (tie)")


@dataclass(frozen=True)
class Grid:
    """A table: one cell a heading in each row."""

    headings: tuple[str, ...]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Section:
    """`short`: shown in a terminal too."""

    title: str
    grids: list[Grid]
    notes: list[str] = field(default_factory=list)
    short: bool = True


def sections(comparison: Comparison) -> list[Section]:
    """Primary pairs, a section a table, gain and forgetting; then learning rates and costs."""
    plan = comparison.resolved.plan
    primary = [
        [_word(table.task), _word(table.measure), *_contrast(table, contrast)]
        for table in comparison.tables
        for contrast in table.primary
    ]
    found = [Section("Primary comparisons", [Grid(("task", "measure", "contrast", *COMPARED), primary)])]
    for table in comparison.tables:
        headings = (
            "method", "verdict", "mean", "sd", *COMPARED[1:], "McNemar by seed", "learning rate", "trainable",
        )  # fmt: skip
        grids = [Grid(headings, [_line(table, line, plan.baseline) for line in table.lines])]
        grids.append(Grid(("contrast", *COMPARED), [_contrast(table, contrast) for contrast in table.contrasts]))
        notes = [_items(table), "" if table.watched else headroom_sentence(table.headroom, bool(plan.headroom))]
        direction = "higher is better" if table.higher_is_better else "lower is better"
        title = f"{table.task}: {table.measure} ({direction}; a difference below {table.margin:g} is a tie)"
        found.append(Section(title, [grid for grid in grids if grid.rows], [note for note in notes if note]))
    found += [
        Section("Gain and forgetting", [_balances(comparison)]),
        Section("Learning rates", [_rates(comparison)], short=False),
        Section("Costs and ranks", [_costs(comparison)], short=False),
    ]
    return [section for section in found if any(grid.rows for grid in section.grids)]


def _line(table: Table, line: Line, baseline: str) -> list[Cell]:
    c, judged, digits = line.entry, line.judged, _digits(table)
    if judged is None:
        verdict = "baseline" if c.label == baseline else "headroom" if c.role == "headroom" else "too few seeds"
        compared: list[Cell] = [("-", None)] * 5
    else:
        verdict = judged.verdict
        exact = sorted(line.mcnemar)
        by_seed = f"{exact[0]:.2f} to {exact[-1]:.2f}" if exact else "-"
        compared = [*_judged(judged, digits), (by_seed, exact[0] if exact else None)]
    return [
        (name_of(c), c.label),
        _word(verdict),
        (f"{line.mean:.{digits}f}", line.mean),
        _optional(line.sd, f".{digits}f"),
        *compared,
        (f"{line.rate:g}", line.rate),
        (f"{c.trainable:,} ({share_of(c)})", c.trainable),
    ]


def _contrast(table: Table, contrast: Contrast) -> list[Cell]:
    said = _word(f"{contrast.label} over {contrast.base}")
    return [said, _word(contrast.judged.verdict), *_judged(contrast.judged, _digits(table))]


def _judged(judged: Judged, digits: int) -> list[Cell]:
    d = judged.difference
    return [
        (f"{d.mean:+.{digits}f}", d.mean),
        (f"[{d.low:+.{digits}f}, {d.high:+.{digits}f}]", d.high - d.low),
        *((f"{p:.3f}" if p >= 0.001 else "below 0.001", p) for p in (judged.p_holm, judged.p_tie)),
    ]


def _balances(comparison: Comparison) -> Grid:
    watched = comparison.resolved.plan.watch
    rows = [
        [
            _word(balance.task),
            (name_of(balance.entry), balance.entry.label),
            _with_spread(balance.gain),
            *(_with_spread(balance.changes[name]) if name in balance.changes else ("-", None) for name in watched),
        ]
        for balance in comparison.balances
    ]
    return Grid(("task", "method", "gain", *(f"{name}: loss" for name in watched)), rows)


def _rates(comparison: Comparison) -> Grid:
    rows: list[list[Cell]] = []
    for (task, label), choice in comparison.choices.items():
        plateau = comparison.plateau(task, label) if choice.rate is not None else []
        width = max(plateau) / min(plateau) if plateau else None
        shown = "-" if width is None else f"{min(plateau):g} to {max(plateau):g} (x {width:.3g})"
        name = name_of(comparison.resolved.entry(label))
        rows.append([_word(task), (name, label), _optional(choice.rate, "g"), (shown, width), _word(choice.sentence())])
    return Grid(("task", "method", "chosen", "plateau", "how"), rows)


def _costs(comparison: Comparison) -> Grid:
    rows = [
        [
            _word(costs.task),
            (name_of(costs.entry), costs.entry.label),
            (f"{costs.train_seconds:.1f}", costs.train_seconds),
            _optional(costs.calibrate_seconds, ".1f"),
            (f"{costs.peak_memory_mib:.0f}", costs.peak_memory_mib),
            (f"{costs.trainable:,}", costs.trainable),
            (f"{costs.stored:,}", costs.stored),
            _rank(costs.exported_rank, costs.padded_rank),
            _optional(costs.effective_rank, ".1f"),
            _optional(costs.stable_rank, ".1f"),
        ]
        for costs in comparison.costs
    ]
    headings = (
        "task", "method", "training, s", "calibration, s", "peak memory, MiB", "trainable", "stored", "exported rank",
        "effective rank", "stable rank",
    )  # fmt: skip
    return Grid(headings, rows)


def _rank(exact: int | None, padded: int | None) -> Cell:
    shown, value = _optional(exact, "d")
    return (shown if padded is None else f"{shown} (file: {padded})"), value


def _with_spread(value: tuple[float, float | None]) -> Cell:
    mean, sd = value
    return f"{mean:+.4f}" + (f" (sd {sd:.4f})" if sd is not None else ""), mean


def _optional(value: float | None, form: str) -> Cell:
    return ("-", None) if value is None else (format(value, form), value)


def _word(text: str) -> Cell:
    return text, text


def _digits(table: Table) -> int:
    return 3 if table.higher_is_better else 4


def _items(table: Table) -> str:
    """Of what the differences are a sample."""
    if not any(line.judged for line in table.lines) and not table.contrasts and not table.primary:
        return ""
    if table.items is None:
        return (
            "Test items count as fixed: the records hold none, so the intervals say nothing of other items, "
            "and differences are found too often."
        )
    return f"Seeds and the {table.items} test items are both counted as samples."


def headroom_sentence(found: list[Contrast], planned: bool) -> str:
    """Rank headroom: does LoRA of a higher rank beat LoRA at r? Where it does not, rank cannot tell methods apart."""
    if not planned:
        return "Headroom: not measured (no headroom in the plan), so ties may mean that rank does not matter here."
    if not found:
        return "Headroom: not measured yet."
    parts = [f"{h.base} at r {h.r} {h.judged.difference.mean:+.4f} ({h.judged.verdict})" for h in found]
    if any(h.judged.verdict == "better" for h in found):
        end = "there is room for rank to matter"
    else:
        end = "that more rank helps is not shown, so this regime CANNOT TELL rank-allocating methods apart"
    return f"Headroom, against the same method at the table's r: {'; '.join(parts)}: {end}."


def name_of(entry: Entry) -> str:
    label = entry.budget_label
    return entry.label if label is None or entry.role == "headroom" else f"{entry.label} [{label}]"


def share_of(entry: Entry) -> str:
    return f"{entry.budget_ratio:.1%}"


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
