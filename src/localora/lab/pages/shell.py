"""One self-contained HTML file: style, script and pictures inlined, no request to anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from html import escape
from importlib.resources import files
from itertools import repeat

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

INK = "#1f2328"  # of the page, see page.css
DOTS_PER_INCH = 115

Cell = tuple[str, float | str | None]  # what is shown, what is sorted by


def whole_page(title: str, sections: Sequence[str], more_style: str = "") -> str:
    """The page around HTML `sections`: tables of class `sortable` sort, and an input with id `filter` filters them.

    Args:
        title: plain text, escaped here.
        more_style: CSS rules of this page alone.
    """
    assets = files("localora.lab.pages")
    style, script = (assets.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style}{more_style}</style>
</head>
<body>
<main>
{"".join(sections)}
</main>
<script>
{script}</script>
</body>
</html>
"""


def table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], marked: Collection[str] = ()) -> str:
    """A table that sorts. Columns of words have the class `word`, a cell that shows one of `marked` that word's."""
    words = [all(isinstance(row[column][1], str) for row in rows) for column in range(len(headings))]
    head = "".join(
        f'<th scope="col"{_classes("word" * word)}><button type="button">{escape(name)}</button></th>'
        for name, word in zip(headings, words, strict=True)
    )
    body = "".join("<tr>" + "".join(map(_cell, row, words, repeat(marked))) + "</tr>\n" for row in rows)
    return f"""<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>
<tbody>{body}</tbody></table></div>
"""


def _cell(cell: Cell, word: bool, marked: Collection[str]) -> str:
    shown, value = cell
    sorted_by = "" if value is None else escape(str(value))
    mark = shown if shown in marked else ""
    return f'<td{_classes("word" * word, mark)} data-value="{sorted_by}">{escape(shown)}</td>'


def _classes(*names: str) -> str:
    used = " ".join(name for name in names if name)
    return f' class="{used}"' if used else ""


def png(figure: Figure) -> bytes:
    """The figure as a PNG; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    plt.close(figure)
    return buffer.getvalue()


def picture(title: str, drawn: bytes, caption: str = "", *, photograph: bool = False) -> str:
    """A section with a PNG, inside the page so that this is one file. A dark page inverts it, unless a `photograph`."""
    kind = "" if photograph else ' class="drawing"'
    source = "data:image/png;base64," + base64.b64encode(drawn).decode("ascii")
    said = f'<p class="soft">{caption}</p>' if caption else ""
    return f"""<section><h2>{title}</h2>{said}
<img{kind} alt="{title}" src="{source}"></section>
"""
