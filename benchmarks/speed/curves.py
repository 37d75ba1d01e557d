"""How cost grows, as tables; and what the measured slopes predict for larger models.

Shape legend
    P   weights of the adapted matrices of one block      T   tokens of a batch      h   hidden size
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from benchmarks.speed import figures
from benchmarks.speed.markdown import label, mib, seconds, spread, table
from benchmarks.speed.methods import BY_KEY
from benchmarks.speed.timing import Spread
from peft import PeftConfig

from localora.lab.cost import predict_cost
from localora.lab.cost.shapes import model_config

Cells = dict[str, dict[str, Any]]
MODELS = ("llama-3-1b", "llama-3-8b", "llama-3-70b")
PREDICTED = ("floor", "peft-lora", "lora", "g-lora", "cps-lora-4")
PLACED = {"g-lora": "g-lora calibration", "cps-lora-4": "cps-lora-4 calibration"}
BATCH_TOKENS, RANK = 2048, 16
GIB = 2**30


def growth(cells: Cells) -> str:
    parts = []
    for name, what in (("rank", "r"), ("hidden", "hidden size"), ("tokens", "tokens")):
        chosen = {cell.split()[1]: value["rows"] for cell, value in cells.items() if cell.startswith(name + " ")}
        if chosen:
            parts.append(_curve(what, chosen))
    if "clusters" in cells:
        parts.append(_clusters(cells["clusters"]["rows"]))
    placing = {cell.split()[1]: value["rows"] for cell, value in cells.items() if cell.startswith("placing ")}
    if placing:
        parts.append(_placing(placing))
    prediction = predict(cells)
    return "\n\n".join([*parts, prediction] if prediction else parts)


def _curve(what: str, chosen: dict[str, figures.Rows]) -> str:
    keys = [row["method"] for row in next(iter(chosen.values()))]
    ours = [key for key in keys if key not in ("floor", "peft-lora")]
    head = [what, "frozen base", "PEFT LoRA", *(f"{label(key)} / PEFT LoRA" for key in ours)]
    head += [f"{label(key)}, bytes saved / PEFT LoRA's" for key in ours]
    body = []
    for x, rows in chosen.items():
        found = figures.by_method(rows)
        line = [x, seconds(found["floor"]["seconds"]), seconds(found["peft-lora"]["seconds"])]
        line += [spread(figures.step_ratio(rows, key)) for key in ours]
        body.append(line + [f"{figures.saved_ratio(rows, key):.3f}" for key in ours])
    return f"**Training step against {what}**\n\n" + table(head, body)


def _clusters(rows: figures.Rows) -> str:
    body = [
        [
            label(row["method"]),
            seconds(row["seconds"]),
            spread(figures.step_ratio(rows, row["method"])),
            mib(row["saved_bytes"]),
            f"{figures.saved_ratio(rows, row['method']):.3f}",
        ]
        for row in rows
    ]
    head = ["method", "step", "over PEFT LoRA", "saved for backward", "over PEFT LoRA's"]
    return "**Training step against the number of clusters**\n\n" + table(head, body)


def _placing(chosen: dict[str, figures.Rows]) -> str:
    names = [row["what"] for row in next(iter(chosen.values()))]
    body = []
    for hidden, rows in chosen.items():
        found = figures.by_method(rows, "what")
        size = f"{found[names[0]]['block_parameters'] / 1e6:.1f} M"
        body.append([hidden, size, *(seconds(found[name]["seconds"]) for name in names)])
    return "**One batch of calibration, and one re-partition, against size**\n\n" + table(
        ["hidden size", "weights of the block", *names], body
    )


def predict(cells: Cells) -> str:
    """Time and memory of whole models, from least squares over the blocks of all hidden sizes and batches measured."""
    blocks = [
        row
        for cell, value in cells.items()
        if cell.split()[0] in ("hidden", "tokens")
        for row in value["rows"]
        if row["r"] == RANK
    ]
    placing = [row for cell, value in cells.items() if cell.startswith("placing ") for row in value["rows"]]
    if len({(row["hidden"], row["tokens"]) for row in blocks}) < 4 or not placing:
        return ""
    body = []
    for model in MODELS:
        config = model_config(model)[1]
        h, layers = config.hidden_size, config.num_hidden_layers
        kv = h * config.num_key_value_heads // config.num_attention_heads
        P = 2 * h * (h + kv) + 3 * h * config.intermediate_size
        for key in PREDICTED:
            rows = [row for row in blocks if row["method"] == key]
            step, step_error = _fit(rows, _time_terms, _median, {"block_parameters": P, "tokens": BATCH_TOKENS})
            saved, saved_error = _fit(
                rows, _byte_terms, lambda row: row["saved_bytes"], {"hidden": h, "tokens": BATCH_TOKENS}
            )
            calibration = "–"  # noqa: RUF001
            if key in PLACED:
                observed = [row for row in placing if row["what"] == PLACED[key]]
                once, _ = _fit(observed, _size_terms, _median, {"block_parameters": P, "tokens": 0})
                calibration = f"{once * layers:.0f} s"
            body.append(
                [
                    model,
                    label(key),
                    f"{step * layers:.1f} s (fit ±{step_error:.0%})",
                    f"{saved * layers / GIB:.1f} GiB (fit ±{saved_error:.0%})",
                    calibration,
                    *_memory(model, key),
                ]
            )
    tokens = placing[0]["tokens"]
    head = ["model", "method", f"step, {BATCH_TOKENS} tokens", "saved for backward"]
    head += [
        f"calibration with one batch of {tokens} tokens",
        "base",
        "adapter file",
        "optimizer",
        "calibration memory",
    ]
    return (
        "**Predicted for whole models** from the slopes above (blocks only, without embeddings and output head; memory "
        "of base, file, optimizer and calibration as `localora budget` computes it)\n\n" + table(head, body)
    )


def _memory(model: str, key: str) -> list[str]:
    maker = BY_KEY[key].config
    config: PeftConfig | None = maker(RANK, 0.0, "calibrate") if maker else None
    if config is None:
        return ["–"] * 4  # noqa: RUF001
    cost = predict_cost(model, config, tokens=BATCH_TOKENS)
    calibration = cost.calibration_kept + cost.calibration_working
    return [
        f"{cost.base_bytes / GIB:.1f} GiB",
        mib(cost.adapter_bytes),
        mib(cost.optimizer_bytes),
        mib(calibration) if calibration else "–",  # noqa: RUF001
    ]


def _median(row: dict[str, Any]) -> float:
    return Spread.of(row["seconds"]).median


def _time_terms(row: dict[str, Any]) -> list[float]:
    return [1.0, row["block_parameters"], row["tokens"] * row["block_parameters"]]


def _byte_terms(row: dict[str, Any]) -> list[float]:
    return [row["tokens"], row["tokens"] * row["hidden"]]


def _size_terms(row: dict[str, Any]) -> list[float]:
    return [1.0, row["block_parameters"]]


def _fit(
    rows: list[dict[str, Any]],
    terms: Callable[[dict[str, Any]], list[float]],
    value: Callable[[dict[str, Any]], float],
    at: dict[str, float],
) -> tuple[float, float]:
    """The value at `at` of the least relative squares, and the largest relative miss on the rows themselves."""
    X = np.array([terms(row) for row in rows], dtype=float)
    y = np.array([value(row) for row in rows], dtype=float)
    coefficients = np.linalg.lstsq(X / y[:, None], np.ones(len(y)), rcond=None)[0]
    miss = float(np.abs(X @ coefficients / y - 1).max())
    return float(np.array(terms(at)) @ coefficients), miss
