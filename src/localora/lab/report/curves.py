"""Loss curves of one run or several, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from localora.lab.training.record import Curve

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by colour-blind readers too


def draw_losses(curves: Mapping[str, Curve], path: Path) -> None:
    """The curves of one run or of several, in a figure of their own."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    plot_losses(axes, curves)
    axes.set_title(f"Loss of {', '.join(curves)}", fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_losses(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Thin lines: loss of each training batch; marked lines: loss on held-out (validation) examples."""
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        train = [p.step for p in curve.train], [p.loss for p in curve.train]
        held_out = [p.step for p in curve.held_out], [p.loss for p in curve.held_out]
        axes.plot(*train, color=colour, linewidth=0.8, alpha=0.45, label=f"{name}, training batches")
        axes.plot(*held_out, color=colour, linewidth=1.8, marker="o", markersize=4, label=f"{name}, held out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per completion token)")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small")
