"""The examples of a published task's split."""

from __future__ import annotations

from pathlib import Path

from localora.lab.data.example import DataError, Example, Scorer
from localora.lab.data.hub import read_hub
from localora.lab.data.jsonl import Row, read_jsonl
from localora.lab.data.published.adapters_style import adapters_example
from localora.lab.data.published.registry import PublishedTask, TaskName
from localora.lab.data.schemas import Columns, to_examples


def load_published(name: TaskName, split: str, folder: str | Path | None) -> tuple[list[Example], Scorer]:
    """The examples of `split` (train, validation, test) and how they are scored: from `folder`, or the Hub if None.

    Raises:
        DataError: the folder or the Hub has no such split, or a row is malformed.
    """
    task = name.task
    rows = _hub_rows(task, split) if folder is None else read_jsonl(_file(task, split, Path(folder).expanduser()))
    examples, scorer = to_examples(rows, Columns(), f"{task.name}-{split}")
    if name.protocol == "llm-adapters":
        return [adapters_example(task, example) for example in examples], Scorer.answer_word
    return examples, scorer


def _places(task: PublishedTask, split: str, folder: Path) -> list[Path]:
    file = f"{task.name}_{split}.jsonl"
    return [folder / task.family / file, folder / file]


def _file(task: PublishedTask, split: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"the data folder {folder} does not exist (relative paths start at {Path.cwd()})")
    places = _places(task, split, folder)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise DataError(
            f"{task.name} has no {split} file in {folder}; put it at {task.family}/{places[0].name}"
            + (", or leave the folder out to read the Hub" if task.hub and split in task.hub.splits else "")
        )
    return found


def _hub_rows(task: PublishedTask, split: str) -> list[Row]:
    if task.hub is None:
        raise DataError(f"{task.name} is not on the Hub in a form we read; give the folder of its {split} file")
    if split not in task.hub.splits:
        raise DataError(f"{task.name} has no {split} split; it has {', '.join(task.hub.splits)}")
    rows = read_hub(task.hub.dataset, task.hub.config, task.hub.splits[split])
    return [Row(row.where, _converted(task, row)) for row in rows]


def _converted(task: PublishedTask, row: Row) -> dict[str, object]:
    assert task.hub is not None
    try:
        return task.hub.convert(row.values)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{row.where}: not the columns of {task.name} that we know ({error!r})") from error
