"""Collect the records of all comparisons in results/, write their reports again, and put them into docs/results.md.

A comparison NAME goes between `<!-- comparison NAME -->` and `<!-- end -->`; the rest of the page stays as it is.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from localora.lab.compare.collected import collect
from localora.lab.report.comparison.write import write_report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "results.md"
BLOCK = re.compile(r"(<!-- comparison (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, results: Path, prefix: str) -> str:
    """The page with every marked block written anew; `prefix` leads from the page's folder to `results`.

    Raises:
        SystemExit: the page marks a comparison that has no records, or a folder of records has no block.
    """
    marked = [name for _, name, _ in BLOCK.findall(page)]
    there = sorted(path.parent.name for path in results.glob("*/plan.json"))
    if sorted(marked) != there:
        sys.exit(f"error: the page marks the comparisons {marked}, but {results.name}/ holds {there}")
    return BLOCK.sub(
        lambda match: f"{match[1]}\n{_report(results / match[2], f'{prefix}/{match[2]}')}\n{match[3]}", page
    )


def _report(folder: Path, link: str) -> str:
    """report.md, its headings one level down, and its pictures where they are as seen from the page."""
    collect(folder)
    write_report(folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    text = re.sub(r"^#", "##", text, flags=re.MULTILINE)
    return re.sub(r"\]\((?=[^)]*\.png\))", f"]({link}/", text)


def main() -> None:
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), RESULTS, "../results"), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} written from the records in {RESULTS.relative_to(ROOT)}/")


if __name__ == "__main__":
    main()
