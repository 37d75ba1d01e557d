"""Whether a node can do the runs of a plan as this machine would: the same code, packages, model and data."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

from localora.lab.compare.workers.node.digest import digest_file, digest_sources

LOCATE = "import importlib.util as u; s = u.find_spec('localora'); print(s.submodule_search_locations[0] if s else '')"


class Needs(TypedDict):
    """What a plan needs of every node; made by :func:`localora.lab.compare.workers.needs.needs_of`."""

    sources: str  # digest of localora's own files
    versions: dict[str, str]  # of the packages that decide what a run computes
    directory: str  # where the plan's relative paths start
    files: dict[str, dict[str, str]]  # path as the plan names it -> digest of each file


def node_problems(needs: Needs) -> list[str]:
    """What is wrong with this node, one line each."""
    return [*_wrong_package(needs), *_wrong_versions(needs["versions"]), *_wrong_files(needs)]


def _wrong_package(needs: Needs) -> list[str]:
    folder = _package_folder(needs["directory"])
    if folder is None:
        return ["localora is not installed there; install the same version on every node"]
    if digest_sources(folder) != needs["sources"]:
        return [f"its localora ({folder}) is another version; install the same on every node"]
    return []


def _package_folder(directory: str) -> Path | None:
    """Where a run's process would import localora from. A process tells: this one has the driver's search path too."""
    found = subprocess.run(
        [sys.executable, "-c", LOCATE], cwd=start_folder(directory), capture_output=True, text=True, check=True
    ).stdout.strip()
    return Path(found) if found else None


def start_folder(directory: str) -> str | None:
    """A plan without relative paths does not need `directory` on the node; then the working folder is any."""
    return directory if os.path.isdir(directory) else None


def _wrong_versions(wanted: dict[str, str]) -> list[str]:
    return [
        f"it has {name} {found}, here it is {expected}; methods are compared on the same versions"
        for name, expected in wanted.items()
        if (found := release(name)) != expected
    ]


def release(package: str) -> str:
    """The installed version without the build's label (+cu128, +cpu)."""
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return "not installed"


def _wrong_files(needs: Needs) -> list[str]:
    problems = []
    for name, files in needs["files"].items():
        path = Path(needs["directory"]) / Path(name).expanduser()
        if not path.exists():
            problems.append(f"it has no {path}, which the plan names; put the same files at the same place there")
            continue
        others = [
            file for file, digest in files.items() if not (path / file).is_file() or digest_file(path / file) != digest
        ]
        if others:
            problems.append(f"{path} is not the same there (differs: {', '.join(others[:3])})")
    return problems
