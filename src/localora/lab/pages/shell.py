"""One self-contained HTML file: style and script inlined, no request to anywhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


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


def data_uri(png: bytes) -> str:
    """A picture inside its page, so that a page is one file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
