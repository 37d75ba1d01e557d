"""All records of a comparison in one file, `records.jsonl`: a line a run, with the JSON files that its folder held.

It is what a repository keeps of a comparison. A run whose folder is there is read from that, and not from here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localora.files import write_file
from localora.lab.compare.plan import PlanError

NAME = "records.jsonl"
FILES = ("run/run.json", "update.json", "tasks.json", "watched.json", "failure.json")  # of a run, as far as it has them
OVER = ("update.json", "failure.json")  # a run is over that has one of them

Files = dict[str, str]  # name -> text


def read_collected(folder: Path) -> dict[str, Files]:
    """The files of each run, by the run's folder; empty where nothing was collected.

    Raises:
        PlanError: a line that is none of ours, or a run that is there twice.
    """
    try:
        text = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PlanError(folder / NAME, f"cannot be read: {error.strerror}") from error
    runs: dict[str, Files] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            values = json.loads(line)
            run, files = str(values["run"]), {name: json.dumps(file) for name, file in values["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PlanError(
                f"{folder / NAME}:{number}",
                f"holds no run ({error!r}); put the file back, or take the line out, and what it held is run again",
            ) from error
        if run in runs:
            raise PlanError(f"{folder / NAME}:{number}", f"{run} is here for the second time; which one is meant?")
        runs[run] = files
    return runs


def collect(folder: Path) -> None:
    """Write `records.jsonl` anew, from the runs whose folders are there and from those that it holds already.

    Raises:
        PlanError: it holds something else, or a run's file is no JSON.
        StorageError: it cannot be written.
    """
    runs = {name: {file: json.loads(text) for file, text in files.items()} for name, files in _known(folder).items()}
    runs |= dict(_found(folder))
    if not runs:
        return
    lines = [json.dumps({"run": name, "files": runs[name]}, separators=(",", ":")) for name in sorted(runs)]
    write_file(folder / NAME, "\n".join(lines) + "\n")


def _known(folder: Path) -> dict[str, Files]:
    return {name: files for name, files in read_collected(folder).items() if not (folder / name).is_dir()}


def _found(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in folder.glob("*/*/*/"):
        if any((path / name).exists() for name in OVER):
            files = {name: _json(path / name) for name in FILES if (path / name).exists()}
            yield path.relative_to(folder).as_posix(), files


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise PlanError(path, f"is no JSON ({error})") from error
