"""Rank headroom: does LoRA of a higher rank beat LoRA at r? Where it does not, rank cannot tell methods apart."""

from __future__ import annotations

from dataclasses import dataclass

from localora.lab.compare.statistics.verdict import Judged


@dataclass(frozen=True)
class Headroom:
    """What a higher rank brings one method; `verdict` is that of the higher rank against r."""

    label: str
    base: str
    r: int
    judged: Judged


def headroom_sentence(found: list[Headroom], planned: bool) -> str:
    """The line next to every table."""
    if not planned:
        return "Headroom: not measured (no headroom in the plan), so ties may mean that rank does not matter here."
    if not found:
        return "Headroom: not measured yet."
    parts = [f"{h.base} at r {h.r} {h.judged.difference.mean:+.4f} ({h.judged.verdict})" for h in found]
    if any(h.judged.verdict == "better" for h in found):
        end = "there is room for rank to matter"
    else:
        end = "that more rank helps is not shown, so this regime CANNOT TELL rank-allocating methods apart"
    return f"Headroom, against the same method at the table's r: {'; '.join(parts)}: {end}."
