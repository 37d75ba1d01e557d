"""Sections of results to Markdown tables; every number comes from the JSON files."""

from __future__ import annotations

from typing import Any

from benchmarks.speed import figures
from benchmarks.speed.markdown import label, mib, seconds, spread, table
from benchmarks.speed.methods import COMPARATORS
from benchmarks.speed.timing import ratio

Cells = dict[str, dict[str, Any]]


def training(cells: Cells) -> str:
    return "\n\n".join(f"**{cell}**\n\n{_steps(value['rows'])}" for cell, value in cells.items())


def _steps(rows: figures.Rows) -> str:
    keys = [row["method"] for row in rows]
    comparators = [key for key in COMPARATORS if key in keys]
    head = ["method", "step", *(f"over {label(key)}" for key in comparators)]
    head += [f"overhead / {label(key)}'s" for key in comparators] + ["trainable"]
    body = []
    for row in rows:
        key = row["method"]
        line = [label(key), seconds(row["seconds"])]
        line += [spread(figures.step_ratio(rows, key, other)) for other in comparators]
        line += ["–" if key == "floor" else spread(figures.step_overhead(rows, key, other)) for other in comparators]  # noqa: RUF001
        body.append([*line, f"{row['trainable']:,}"])
    return table(head, body)


def saved(cells: Cells) -> str:
    """One row a method, one column a cell: ratio to PEFT LoRA's, and its bytes in the first row."""
    return _grid(
        cells, figures.saved_ratio, lambda row: mib(row["saved_bytes"]), "bytes saved for backward / PEFT LoRA's"
    )


def memory(cells: Cells) -> str:
    return _grid(cells, figures.peak_ratio, lambda row: f"{figures.peak_mib(row):.0f} MiB", "peak memory / PEFT LoRA's")


def _grid(cells: Cells, ratio_of: Any, absolute: Any, what: str) -> str:
    keys = list(dict.fromkeys(row["method"] for cell in cells.values() for row in cell["rows"]))
    body = []
    for key in keys:
        line = [label(key)]
        for cell in cells.values():
            found = figures.by_method(cell["rows"])
            line.append(f"{ratio_of(cell['rows'], key):.3f} ({absolute(found[key])})" if key in found else "–")  # noqa: RUF001
        body.append(line)
    return f"{what} (and the size itself):\n\n" + table(["method", *cells], body)


def inference(cells: Cells) -> str:
    parts = []
    for cell, value in cells.items():
        rows, reference = value["rows"], "floor" if cell.startswith("merged") else "peft-lora"
        over = f"over {label(reference)}"
        body = [
            [
                label(row["method"]),
                seconds(row["prefill_seconds"]),
                spread(figures.step_ratio(rows, row["method"], reference, "prefill_seconds")),
                seconds(row["decode_seconds"]),
                spread(figures.step_ratio(rows, row["method"], reference, "decode_seconds")),
            ]
            for row in rows
        ]
        parts.append(f"**{cell}**\n\n" + table(["method", "prefill", over, "decode, a token", over], body))
    return "\n\n".join(parts)


def files(cells: Cells) -> str:
    parts = []
    for cell, value in cells.items():
        rows = value["rows"]
        body = [
            [
                label(row["method"]),
                mib(row["file_bytes"]),
                f"{figures.file_ratio(rows, row['method']):.3f}",
                seconds(row["save_seconds"]),
                spread(figures.step_ratio(rows, row["method"], field="save_seconds")),
                seconds(row["load_seconds"]),
                spread(figures.step_ratio(rows, row["method"], field="load_seconds")),
            ]
            for row in rows
        ]
        over = "over PEFT LoRA"
        parts.append(f"**{cell}**\n\n" + table(["method", "file", over, "save", over, "load", over], body))
    return "\n\n".join(parts)


def calibration(cells: Cells) -> str:
    body = []
    for cell, value in cells.items():
        if not cell.startswith("time, "):
            continue
        peaks = cells.get(cell.replace("time, ", "memory, ", 1))
        for row in value["rows"]:
            if "batch_seconds" not in row:
                continue
            key = row["method"]
            body.append(
                [
                    cell.removeprefix("time, "),
                    label(key),
                    seconds(row["batch_seconds"]),
                    spread(figures.calibration_ratio(value["rows"], key)),
                    seconds(row["planning_seconds"]),
                    f"{figures.peak_ratio(peaks['rows'], key):.3f}" if peaks else "–",  # noqa: RUF001
                ]
            )
    head = ["workload", "method", "a batch", "over a PEFT LoRA step", "the rest, once", "peak memory / PEFT LoRA's"]
    return table(head, body)


def startup(cells: Cells) -> str:
    parts = []
    if "import" in cells:
        found = figures.by_method(cells["import"]["rows"], "module")
        over = spread(ratio(found["localora"]["seconds"], found["peft"]["seconds"]))
        body = [
            ["import peft", seconds(found["peft"]["seconds"]), "1"],
            ["import localora", seconds(found["localora"]["seconds"]), over],
        ]
        parts.append(table(["what", "time", "over import peft"], body))
    if "injection" in cells:
        rows = cells["injection"]["rows"]
        reference = figures.by_method(rows)["peft-lora"]["seconds"]
        body = [
            [label(row["method"]), row["placement"], seconds(row["seconds"]), spread(ratio(row["seconds"], reference))]
            for row in rows
        ]
        parts.append(table(["injection of", "placement", "time", "over PEFT LoRA"], body))
    return "\n\n".join(parts)


def compiled(cells: Cells) -> str:
    parts = []
    for cell, value in cells.items():
        rows = value["rows"]
        body = [
            [
                label(r["method"]),
                seconds(r["seconds"]),
                spread(figures.step_ratio(rows, r["method"])),
                str(r["graph_breaks"]),
            ]
            for r in rows
        ]
        parts.append(f"**{cell}**\n\n" + table(["method", "step", "over PEFT LoRA", "graph breaks"], body))
    return "\n\n".join(parts)
