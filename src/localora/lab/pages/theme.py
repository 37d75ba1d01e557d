"""Pictures in the colours of the page they stand on."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

Theme = Literal["light", "dark"]
SURFACE = {"light": "#ffffff", "dark": "#1b1f24"}  # the page's own, see page.css
INK = {"light": "#1f2328", "dark": "#d8dee4"}
DOTS_PER_INCH = 115


def png(draw: Callable[[], Figure], theme: Theme) -> bytes:
    """What `draw` draws, as a PNG in the theme's colours."""
    surface, ink = SURFACE[theme], INK[theme]
    style: Any = {  # matplotlib types its keys one by one
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), surface),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), ink),
        "font.size": 10,
    }
    with plt.rc_context(style):
        figure = draw()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
        plt.close(figure)
    return buffer.getvalue()
