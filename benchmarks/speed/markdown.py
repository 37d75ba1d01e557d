"""Small pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.speed.methods import BY_KEY
from benchmarks.speed.timing import Spread


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, its first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def label(key: str) -> str:
    if key in BY_KEY:
        return BY_KEY[key].label
    if key.startswith("cps-lora-"):
        return f"CPS-LoRA, K = {key.removeprefix('cps-lora-')}"
    return "frozen base again" if key == "floor-again" else key


def spread(value: Spread | None) -> str:
    """Median and quartiles; a dash where there is nothing to say."""
    return "–" if value is None else f"{value.median:.3f} ({value.low:.3f}–{value.high:.3f})"  # noqa: RUF001


def seconds(value: Sequence[float]) -> str:
    median = Spread.of(value).median
    return f"{median * 1000:.1f} ms" if median < 1 else f"{median:.2f} s"


def mib(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"
