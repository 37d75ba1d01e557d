"""Records as they were written, each with its place for errors: of JSON Lines files, JSON lists, and Hub data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from localora.files import KeyTwiceError, unique_keys
from localora.lab.data.example import DataError


class Row(NamedTuple):
    """One record, and where it stands, for error messages: `file:line` or `data set, row i`."""

    where: str
    values: Mapping[str, Any]


def read_jsonl(path: str | Path) -> list[Row]:
    """The objects of a JSONL file, whose blank lines are skipped, or of a JSON file that is one list of them.

    Raises:
        DataError: the file does not exist, is not UTF-8, holds no rows, or a line is not a JSON object.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {kind} (relative paths start at {Path.cwd()})")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    rows = []
    for where, values in _list(path, text) if text.lstrip().startswith("[") else _lines(path, text):
        if not isinstance(values, dict):
            raise DataError(f"{where}: expected a JSON object, found {type(values).__name__}")
        rows.append(Row(where, values))
    if not rows:
        raise DataError(f"{path} holds no examples")
    return rows


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not str.splitlines: it also splits at U+2028 and its like, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parsed(line, f"{path}:{number}")


def _list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, values in enumerate(_parsed(text, str(path))):
        yield f"{path}, item {number}", values


def _parsed(text: str, where: str) -> Any:
    try:
        values = json.loads(text, object_pairs_hook=unique_keys)
        if "\\ud" in text.lower():  # escapes of characters beyond 16 bits come in pairs
            json.dumps(values, ensure_ascii=False).encode("utf-8")
    except KeyTwiceError as error:
        raise DataError(f"{where}: {error}") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DataError(f"{where}: not valid JSON ({error.msg}, {line}column {error.colno})") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: holds half of a surrogate pair ({error.object[error.start]!r}), no text") from error
    except RecursionError:
        raise DataError(f"{where}: nested too deeply to be read") from None
    except ValueError as error:
        raise DataError(f"{where}: holds a number that is too long to be read ({error})") from error
    return values


def read_hub(name: str, config: str | None, split: str) -> list[Row]:
    """The records of one split; cached by the datasets library, so later reads work offline.

    Raises:
        DataError: no such data set, configuration or split; the Hub is out of reach; or the split is empty.
    """
    import datasets  # two seconds, and only this source needs it

    try:
        records = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError) as error:  # not found and no connection are both OSError
        raise DataError(
            f"cannot load split {split!r} of the Hub data set {name!r}"
            + (f" ({config})" if config else "")
            + f": {error}\nCheck the id, hub_config and the split's name; offline, load it once while "
            "connected or save it as JSONL and set `path`"
        ) from error
    if len(records) == 0:
        raise DataError(f"split {split!r} of the Hub data set {name!r} holds no examples")
    return [Row(f"{name} {split}, row {index}", record) for index, record in enumerate(records)]
