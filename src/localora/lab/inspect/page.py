"""The report's folder, and its page: one file, pictures inlined, no request to anywhere, readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from localora.files import make_folder, write_file
from localora.lab.inspect.cluster_test import UNCHANGED
from localora.lab.inspect.layer import LayerInspection
from localora.lab.inspect.pictures import adapter_name, draw_all
from localora.lab.inspect.report import VERDICTS, InspectionReport
from localora.lab.pages.shell import Cell, picture, table, whole_page

CAPTIONS = {
    "captured": (
        "Energy at LoRA's budget",
        "How much of each layer's update the best adapter of each kind could hold, all at the parameters of LoRA of "
        "rank {rank}. A dot is a layer, the bar the median. G-LoRA's block is chosen by the energy of rows and columns "
        "here, since a finished update has no gradient at hand. Contiguous clusters and the grid look at no data.",
    ),
    "heatmap": (
        "Layer by layer",
        "Excess: how far the clusters found beat those found in random matrices with the same singular values and the "
        "same energy in every row and column; 0 is chance, 1 means that all energy lies in clusters. Gain: energy of "
        "the best CPS-LoRA over LoRA's at equal parameters; below 1, plain LoRA holds more.",
    ),
    "spectra": (
        "Singular values",
        "Of each layer's update, over the largest. A line that is flat beyond the budget has more directions than LoRA "
        "of that rank can hold.",
    ),
    "matrices": (
        "Before and after sorting",
        "Size of the entries in the layers with most, median and least excess. Bright blocks on the diagonal after "
        "sorting are clusters; the planner sorts noise as well, so trust the excess and not the eye.",
    ),
}
READING = """
<p><b>Rotated null</b>: random matrices with the same singular values. Beating it alone means that some rows and columns
hold more energy than others.</p>
<p><b>Matched null</b>: the same singular values and the same energy in every row and column. Beating it means clusters:
groups of rows and columns with directions of their own.</p>
<p><b>Effective rank</b>: exp of the entropy of the singular values over their sum (Roy and Vetterli, 2007).
<b>Stable rank</b>: energy over the largest squared singular value. <b>Used of r</b>: effective rank over the budgeted
rank.</p>
"""


def write_report(report: InspectionReport, folder: Path) -> None:
    """`inspection.json`, a PNG of each picture, and `index.html`, which holds all of it in one file."""
    make_folder(folder)
    write_file(folder / "inspection.json", report.to_json())  # data first, since pictures can be drawn again
    pictures = draw_all(report)
    for name, png in pictures.items():
        write_file(folder / f"{name}.png", png)
    write_file(folder / "index.html", render_page(report, pictures))


def render_page(report: InspectionReport, pictures: dict[str, bytes]) -> str:
    """The page, given each picture as PNG bytes."""
    shown = []
    for name, png in pictures.items():
        title, caption = CAPTIONS[name]
        shown.append(picture(title, png, caption.format(rank=report.rank), photograph=name == "matrices"))
    sections = [_summary(report), *shown, _table(report), _reading(report)]
    return whole_page(f"Update inspected: {report.source}", sections)


def _summary(report: InspectionReport) -> str:
    tiles = [(f"{count}", f'<span class="{verdict}">{verdict}</span>') for verdict, count in report.verdicts().items()]
    if report.changed:
        effective, stable = report.median_ranks()
        tiles += [(f"{effective:.1f}", "median effective rank"), (f"{stable:.1f}", "median stable rank")]
        captured = report.median_captured()
        tiles += [(f"{captured['lora']:.0%}", f"median energy in LoRA r {report.rank}")]
    meanings = "".join(
        f'<p><span class="{verdict}">{verdict}</span>: {VERDICTS[verdict]}.</p>' for verdict in report.verdicts()
    )
    headline = escape(report.headline())
    return f"""<h1>{headline[0].upper()}{headline[1:]}</h1>
<p class="soft">{escape(report.source)}; budget r {report.rank}, K {", ".join(map(str, report.clusters))},
{report.draws} draws of each null, seed {report.seed}, {report.seconds:.0f} s</p>
<section><h2>Verdicts</h2>{meanings}<div class="tiles">{
        "".join(f'<div class="tile"><b>{value}</b>{label}</div>' for value, label in tiles)
    }</div></section>
"""


def _table(report: InspectionReport) -> str:
    captured = list(report.median_captured())
    headings = ["layer", "shape", "norm", "stable rank", "effective rank", "used of r", "verdict", "strongest clusters"]
    headings += ["excess", "observed", "rotated null", "matched null", "z (matched)"]
    headings += [adapter_name(key) for key in captured]
    rows = [_row(layer, captured) for layer in report.layers]
    return f"""<section><h2>All layers</h2>
<p class="soft">Click a heading to sort. Observed and nulls: energy the strongest clusters hold, of the leading
directions of the update and of matrices without clusters (mean and standard deviation of the draws). The columns
after them: energy captured at the budget, of the whole update.</p>
<input id="filter" type="search" placeholder="filter, e.g. q_proj or clusters" aria-label="filter layers">
{table(headings, rows, VERDICTS)}</section>
"""


def _row(layer: LayerInspection, captured: Sequence[str]) -> list[Cell]:
    test = layer.test
    cells: list[Cell] = [
        (layer.name, layer.name),
        (f"{layer.rows} x {layer.cols}", layer.rows * layer.cols),
        (f"{layer.norm:.3g}", layer.norm),
        *((f"{value:.2f}", value) for value in (layer.stable_rank, layer.effective_rank)),
        (f"{layer.rank_utilisation:.0%}", layer.rank_utilisation),
        (test.verdict, test.verdict),
    ]
    if test.verdict == UNCHANGED or test.strongest is None:
        cells += [("-", None)] * 6
    else:
        rotated, matched = (test.nulls[name][f"cps_{test.strongest}"] for name in ("rotated", "matched"))
        cells += [
            (adapter_name(f"cps_{test.strongest}").removeprefix("CPS-LoRA, "), test.strongest),
            (f"{test.excess:z.2f}", test.excess),
            (f"{matched.observed:.1%}", matched.observed),
            *((_spread(null.mean, null.sd), null.mean) for null in (rotated, matched)),
            ("-" if matched.z is None else f"{matched.z:.1f}", matched.z),
        ]
    cells += [("-", None) if (x := layer.captured.get(key)) is None else (f"{x:.1%}", x) for key in captured]
    return cells


def _spread(mean: float, sd: float) -> str:
    return f"{mean:.1%} ± {sd:.1%}"


def _reading(report: InspectionReport) -> str:
    left_out = ""
    if report.skipped:
        items = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in report.skipped.items())
        left_out = f"<details><summary>{len(report.skipped)} tensors left out</summary><ul>{items}</ul></details>"
    return f"<section><h2>How to read it</h2>{READING}{left_out}</section>"
