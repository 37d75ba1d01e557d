"""The reports of all comparisons in results/ again, each from its records; each is a page of the documentation."""

from __future__ import annotations

from pathlib import Path

from localora.lab.compare.collected import collect
from localora.lab.report.comparison.write import write_report

RESULTS = Path(__file__).parents[1] / "results"


def comparisons(results: Path = RESULTS) -> list[Path]:
    """The folders of comparisons that were run, by name."""
    return sorted(path.parent for path in results.glob("*/plan.json"))


def main() -> None:
    for folder in comparisons():
        collect(folder)
        write_report(folder)
        print(f"results/{folder.name}/report.md written from its records")


if __name__ == "__main__":
    main()
