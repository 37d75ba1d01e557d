"""The report's pictures as PNG bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from localora.lab.inspect.layer import LayerInspection
from localora.lab.inspect.report import InspectionReport
from localora.lab.pages.shell import INK, png

STRONG, MISSING = "#0072b2", "#e6e6e6"
SHOWN_MATRICES = 3  # the layers with most, median and least excess
LABELLED_ROWS = 40


def draw_all(report: InspectionReport) -> dict[str, bytes]:
    """Name -> PNG; empty when no layer changed."""
    if not report.changed:
        return {}
    pictures: dict[str, Callable[[InspectionReport], Figure]] = {
        "captured": draw_captured,
        "heatmap": draw_heatmap,
        "spectra": draw_spectra,
        "matrices": draw_matrices,
    }
    return {name: png(draw(report)) for name, draw in pictures.items()}


def draw_captured(report: InspectionReport) -> Figure:
    """One line an adapter: a dot a layer, a bar at the median."""
    keys = list(report.median_captured())
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.32 * len(keys)), layout="constrained")
    jitter = np.random.default_rng(0)
    for line, (key, median) in enumerate(report.median_captured().items()):
        values = [x for x in (layer.captured.get(key) for layer in report.changed) if x is not None]
        axes.scatter(values, line + jitter.uniform(-0.22, 0.22, len(values)), s=12, alpha=0.6, color=STRONG, lw=0)
        axes.plot([median, median], [line - 0.34, line + 0.34], color=INK, linewidth=2)
    axes.set_yticks(range(len(keys)), [adapter_name(key) for key in keys])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.01)
    axes.set_xlabel(f"share of the update's energy held at LoRA's budget of rank {report.rank}")
    axes.grid(axis="x", alpha=0.25)
    return figure


def draw_spectra(report: InspectionReport) -> Figure:
    """Singular values over the largest, a line a layer, coloured by module."""
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    modules = list(dict.fromkeys(module for _, module in layer_places(report.layers)))
    colour = {
        module: plt.get_cmap("tab20" if len(modules) > 10 else "tab10")(i % 20) for i, module in enumerate(modules)
    }
    for layer, (_, module) in zip(report.layers, layer_places(report.layers), strict=True):
        s = np.array(layer.singular_values)
        if layer.norm > 0:
            axes.plot(np.arange(1, len(s) + 1), s / s[0], color=colour[module], linewidth=0.9, alpha=0.6)
    axes.axvline(report.rank, color=INK, linestyle="--", linewidth=1)
    axes.annotate(
        f"budget r = {report.rank}", (report.rank, 1.0), xytext=(4, 0), textcoords="offset points", fontsize=9
    )
    axes.set(xscale="log", yscale="log", xlabel="index", ylabel="singular value / largest", ylim=(1e-4, 1.3))
    axes.grid(alpha=0.2)
    handles = [plt.Line2D([], [], color=colour[module], label=module) for module in modules[:20]]
    axes.legend(handles=handles, frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draw_heatmap(report: InspectionReport) -> Figure:
    """Layer x module: excess over the matched null, what clusters gain on LoRA, rank utilisation, LoRA's energy."""
    places = layer_places(report.layers)
    depths = sorted({depth for depth, _ in places})
    modules = list(dict.fromkeys(module for _, module in places))
    panels: list[tuple[str, Callable[[LayerInspection], float | None], str, float | None, float | None]] = [
        ("excess over the matched null\n(0: chance, 1: all clusters)", lambda x: x.test.excess, "viridis", 0.0, 1.0),
        ("best CPS-LoRA's energy\nover LoRA's", _gain, "RdBu", 0.5, 1.5),
        (f"rank utilisation\n(effective rank / {report.rank})", lambda x: x.rank_utilisation, "viridis", 0.0, None),
        ("energy LoRA captures", lambda x: x.captured.get("lora"), "viridis", 0.0, 1.0),
    ]
    height = min(12.0, 2.6 + 0.19 * len(depths) + 0.05 * max(len(module) for module in modules))
    width = 2.2 + 4 * max(1.7, 0.3 * len(modules))
    figure, grid = plt.subplots(1, 4, figsize=(width, height), layout="constrained", sharey=True)
    for axes, (title, figure_of, cmap, low, high) in zip(grid, panels, strict=True):
        cells = np.full((len(depths), len(modules)), np.nan)
        for layer, (depth, module) in zip(report.layers, places, strict=True):
            value = figure_of(layer) if layer.norm > 0 else None
            cells[depths.index(depth), modules.index(module)] = np.nan if value is None else value
        image = axes.imshow(
            cells,
            cmap=plt.get_cmap(cmap).with_extremes(bad=MISSING),
            vmin=low,
            vmax=high,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(range(len(modules)), modules, rotation=90, fontsize="small")
        figure.colorbar(image, ax=axes, location="top", shrink=0.9)
    step = -(-len(depths) // LABELLED_ROWS)
    labels = ["-" if depth < 0 else str(depth) for depth in depths]
    grid[0].set_yticks(range(0, len(depths), step), labels[::step], fontsize="small")
    grid[0].set_ylabel("layer")
    return figure


def draw_matrices(report: InspectionReport) -> Figure:
    """|dW| of a few layers: as it is, and with rows and columns sorted by cluster."""
    chosen = [layer for layer in _chosen(report) if layer.thumbnails is not None]
    figure, grid = plt.subplots(len(chosen), 2, figsize=(9, 3.6 * len(chosen)), layout="constrained", squeeze=False)
    for (before, after), layer in zip(grid, chosen, strict=True):
        small = layer.thumbnails
        assert small is not None
        high = float(np.quantile(np.concatenate([small.original.ravel(), small.reordered.ravel()]), 0.995))
        _show(before, small.original, layer, high)
        _show(after, small.reordered, layer, high)
        for edge in small.row_edges[:-1]:
            after.axhline(edge, color="#ffffff", linewidth=0.7)
        for edge in small.col_edges[:-1]:
            after.axvline(edge, color="#ffffff", linewidth=0.7)
        before.set_title(short_name(layer.name), fontsize="medium")
        excess = "" if layer.test.excess is None else f", excess {layer.test.excess:.2f}"
        after.set_title(f"sorted into {small.clusters} clusters: {layer.test.verdict}{excess}", fontsize="medium")
        before.set(xlabel="column (input)", ylabel="row (output)")
        after.set(xlabel="column, by cluster", ylabel="row, by cluster")
    return figure


def _show(axes: Axes, picture: Tensor, layer: LayerInspection, high: float) -> None:
    extent = (0, layer.cols, layer.rows, 0)
    axes.imshow(
        picture.numpy(), cmap="inferno", vmin=0, vmax=high, aspect="auto", interpolation="nearest", extent=extent
    )


def _chosen(report: InspectionReport) -> list[LayerInspection]:
    ranked = sorted(report.changed, key=lambda layer: -(layer.test.excess or 0.0))
    if len(ranked) <= SHOWN_MATRICES:
        return ranked
    return [ranked[round(i * (len(ranked) - 1) / (SHOWN_MATRICES - 1))] for i in range(SHOWN_MATRICES)]


def _gain(layer: LayerInspection) -> float | None:
    """The best of the planned clusters over LoRA, at equal parameters."""
    planned = [value for key, value in layer.captured.items() if key.startswith("cps") and value is not None]
    lora = layer.captured.get("lora")
    return max(planned) / lora if planned and lora else None


def layer_places(layers: Sequence[LayerInspection]) -> list[tuple[int, str]]:
    """(depth, module) of each layer; depth -1 without a number in the name."""
    split = [re.match(r"(.*?)\.?\b(\d+)\.(.+)", layer.name) for layer in layers]
    stacks = {found[1] for found in split if found}
    places = []
    for layer, found in zip(layers, split, strict=True):
        if found is None:
            places.append((-1, layer.name))
        else:
            places.append((int(found[2]), found[3] if len(stacks) == 1 else f"{found[1]}.{found[3]}"))
    return places


def adapter_name(key: str) -> str:
    """`cps_k4_free` -> CPS-LoRA, K = 4, free sizes."""
    kind, found, rest = key.partition("_k")
    names = {"lora": "LoRA", "g_lora": "G-LoRA", "cps": "CPS-LoRA", "contiguous": "contiguous", "grid": "grid"}
    if not found:
        return names[key]
    K, _, sizes = rest.partition("_")
    return f"{K} x {K} {names[kind]}" if kind == "grid" else f"{names[kind]}, K = {K}" + (f", {sizes}" if sizes else "")


def short_name(name: str) -> str:
    """The last four parts: layers.3.self_attn.q_proj."""
    return ".".join(name.split(".")[-4:])
