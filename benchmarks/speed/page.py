"""Writes the tables into a Markdown page, between `<!-- speed SECTION -->` and `<!-- end -->`; the rest stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed import curves, tables
from benchmarks.speed.store import StoreError, read_results
from benchmarks.speed.targets import targets

SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "training": tables.training,
    "saved": tables.saved,
    "memory": tables.memory,
    "inference": tables.inference,
    "files": tables.files,
    "calibration": tables.calibration,
    "startup": tables.startup,
    "growth": curves.growth,
    "compile": tables.compiled,
}
BLOCK = re.compile(r"(<!-- speed (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_MEASURED = "_Not measured yet._"


def write_page(page: Path, results: Path) -> None:
    """Fill every marked block from the folders of results, one a machine.

    Raises:
        StoreError: the page marks a section that does not exist.
    """
    machines = {folder.name: read_results(folder) for folder in sorted(results.glob("*")) if folder.is_dir()}
    page.write_text(BLOCK.sub(lambda match: _filled(match, machines), page.read_text()))


def _filled(match: re.Match[str], machines: dict[str, dict[str, dict[str, Any]]]) -> str:
    begin, section, end = match.groups()
    if section not in {*SECTIONS, "targets", "machines"}:
        raise StoreError(f"the page marks a section {section!r}; there are machines, targets, {', '.join(SECTIONS)}")
    parts = []
    for name, results in machines.items():
        text = _section(section, results)
        if text:
            parts.append(f"#### {name}\n\n{text}")
    return f"{begin}\n{chr(10).join([p + chr(10) for p in parts]) or NOT_MEASURED + chr(10)}\n{end}"


def _section(section: str, results: dict[str, Any]) -> str:
    if not results:
        return ""
    if section == "machines":
        return _machine(results)
    if section == "targets":
        return targets(results)
    return SECTIONS[section](results[section]["cells"]) if section in results else ""


def _machine(results: dict[str, Any]) -> str:
    """Where it ran, once for sections that share it; and how quiet the machine was."""
    lines = []
    described: dict[str, list[str]] = {}
    for section, result in results.items():
        described.setdefault(_describe(result["environment"]), []).append(section)
    for text, sections in described.items():
        lines.append(f"- {', '.join(sections)}: {text}")
    for section, result in results.items():
        loads = [load for cell in result["cells"].values() for load in cell["load"]]
        commits = sorted({cell["commit"] or "unknown" for cell in result["cells"].values()})
        rounds = " or ".join(map(str, sorted({cell["rounds"] for cell in result["cells"].values()})))
        lines.append(
            f"- {section}: {rounds} rounds, commit {', '.join(commits)}, load average before and after "
            f"a cell {min(loads)} to {max(loads)}"
        )
    return "\n".join(lines)


def _describe(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    variables = ", ".join(f"{key}={value}" for key, value in environment["variables"].items()) or "none set"
    card = f"{environment['card']} (CUDA {environment['cuda']}), " if environment["card"] else ""
    return (
        f"{card}{environment['processor']} ({environment['capability']}), {environment['cores']} cores, "
        f"{environment['threads']} threads, {environment['memory_gib']} GiB, {environment['system']}, "
        f"Python {environment['python']}, {versions}; environment variables: {variables}"
    )
