"""Markdown tables from the summary, and their places in pages: `<!-- theory NAME -->` to `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.theory.grid import AT_EQUAL_ERROR

BLOCK = re.compile(r"(<!-- theory (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Summary = dict[str, Any]


def fill_page(page: Path, summary: Summary) -> None:
    """Fill every marked block of a page; the rest of it stays."""
    page.write_text(
        BLOCK.sub(lambda match: f"{match[1]}\n{SECTIONS[match[2]](summary)}\n\n{match[3]}", page.read_text())
    )


def equal_error(summary: Summary) -> str:
    """LoRA's parameters over CPS-LoRA's at the same error."""
    ordered = sorted(
        summary["parameters_at_equal_error"],
        key=lambda row: (row["task"], row["clusters"], list(AT_EQUAL_ERROR).index(row["student"]), row["r"]),
    )
    rows = [
        [
            row["task"],
            str(row["clusters"]),
            str(row["r"]),
            AT_EQUAL_ERROR[row["student"]],
            _ratio(row),
            str(row["bound"]),
        ]
        for row in ordered
    ]
    return _table(["teacher", "K", "r", "labels", "parameters of LoRA / of CPS-LoRA at equal error", "bound"], rows)


def linear(summary: Summary) -> str:
    return _students(summary, "linear")


def transformer(summary: Summary) -> str:
    return _students(summary, "transformer")


def dial(summary: Summary) -> str:
    """Errors over LoRA's at equal parameters, as the bases overlap."""
    columns = [("cps-oracle", "oracle labels"), ("cps-found", "found labels"), ("cps-free", "found, balance 0")]
    overlaps = sorted({row["overlap"] for row in summary["dial"]})
    rank = summary["rank"]
    rows = []
    for overlap in overlaps:
        here = {(row["student"], row["r"] == rank): row for row in summary["dial"] if row["overlap"] == overlap}
        large = here["lora", False]
        rows.append(
            [f"{overlap:g}", _interval(here["lora", True]["error"], 3)]
            + [_interval(here[key, True]["relative_to_lora"], 3) for key, _ in columns]
            + [_interval(large["relative_to_lora"], 3)]
        )
    heads = ["overlap", "LoRA's error", *(f"CPS-LoRA, {label}: error / LoRA's" for _, label in columns)]
    return _table([*heads, "LoRA with K times the parameters: error / LoRA's"], rows)


SECTIONS: dict[str, Callable[[Summary], str]] = {
    "equal-error": equal_error,
    "linear": linear,
    "transformer": transformer,
    "dial": dial,
}


def _students(summary: Summary, task: str) -> str:
    rows = [
        [
            str(row["clusters"]),
            row["label"],
            f"{row['parameters']:,}",
            f"{row['lr']:g}",
            _interval(row["error"], 4),
            "" if row["optimum"] is None else f"{row['optimum']:.4f}",
            _interval(row["relative_to_oracle"], 3),
            _agreement(row),
        ]
        for row in summary["tables"]
        if row["task"] == task
    ]
    if not rows:
        return "_Not measured yet._"
    heads = ["K", "student", "parameters", "learning rate", "error", "optimum", "error / oracle's"]
    return _table([*heads, "agreement with the planted labels"], rows)


def _ratio(row: dict[str, Any]) -> str:
    """The interval of the seeds that have a ratio, and how many lie beyond LoRA's curve."""
    parts = [_interval(row["ratio"], 2)] if row["ratio"] else []
    if row["worse"]:
        parts.append(f"below 1 ({row['worse']} seeds)")
    if row["better"]:
        parts.append(f"above {row['highest']:g} ({row['better']} seeds)")
    return "; ".join(parts)


def _agreement(row: dict[str, Any]) -> str:
    if row["agreement"] is None or row["student"] == "cps-oracle":
        return ""
    return f"{max(row['agreement'], 0.0):.2f}"  # chance is a little below 0


def _interval(value: dict[str, float] | None, digits: int) -> str:
    return "" if value is None else f"{value['mean']:.{digits}f} ± {value['half']:.{digits}f}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
