"""How an ordeal ends: counted by outcome, and whether that outcome is one that we promise."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tally:
    """One line of the table. `good` outcomes are promised; everything else is a failure, and is told in `failures`."""

    ordeal: str
    good: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: str | None = None  # why it could not be tried here

    def note(self, outcome: str, of: str) -> None:
        """Count an outcome; `of` says of which case, for the failures."""
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        if outcome not in self.good:
            self.failures.append(f"{of}: {outcome}")

    @property
    def cases(self) -> int:
        return sum(self.counts.values())

    @property
    def held(self) -> bool:
        return not self.failures


def table(tallies: list[Tally]) -> str:
    """Markdown: a line an ordeal."""
    lines = ["| ordeal | cases | outcomes | broken |", "| --- | --- | --- | --- |"]
    for tally in tallies:
        outcomes = ", ".join(
            f"{count} {name}" for name, count in sorted(tally.counts.items(), key=lambda pair: -pair[1])
        )
        broken = "not tried" if tally.skipped else str(len(tally.failures))
        lines.append(f"| {tally.ordeal} | {tally.cases} | {tally.skipped or outcomes} | {broken} |")
    return "\n".join(lines)
