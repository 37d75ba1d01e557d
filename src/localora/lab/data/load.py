"""Load a task from its spec: the one entry point of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localora.lab.data.example import DataError, Example, Scorer, TaskData, content_hash
from localora.lab.data.generated.registry import BY_HEART, generate_task
from localora.lab.data.rows import Row, read_hub, read_jsonl
from localora.lab.data.schemas import IDENTITIES, to_examples
from localora.lab.data.split import check_disjoint, split_off, subset
from localora.lab.recipe.data_spec import DataSpec


def load_task(spec: Mapping[str, Any] | DataSpec) -> TaskData:
    """Generate or read the task that `spec` (the keys of :class:`DataSpec`) describes.

    The splits share no normalised prompt (but by-heart's, which asks for what was trained on), and are the same for
    the same spec on every machine.

    Raises:
        pydantic.ValidationError: unknown or contradictory keys.
        DataError: a missing file, a malformed line (file:line), missing keys, an unknown schema, no examples.
        OverlapError: a prompt is in two of the given files.
    """
    spec = spec if isinstance(spec, DataSpec) else DataSpec.model_validate(dict(spec))
    if spec.task is not None:
        sizes = {
            "train": spec.train_size or 2000,
            "validation": spec.validation_size or 100,
            "test": spec.test_size or 200,
        }
        splits, scorer = generate_task(spec.task, spec.difficulty, sizes, spec.seed)
    else:
        splits, scorer = _read(spec)
    if spec.task != BY_HEART:  # which asks for what was trained on
        check_disjoint(splits["train"], splits["validation"])
        check_disjoint(splits["train"], splits["test"])
    check_disjoint(splits["validation"], splits["test"])
    return TaskData(
        name=spec.task or spec.hub or "+".join(Path(file).stem for file in spec.files["train"]),
        **{name: tuple(examples) for name, examples in splits.items()},
        scorer=scorer,
        hashes={name: content_hash(examples) for name, examples in splits.items()},
    )


def _read(spec: DataSpec) -> tuple[dict[str, list[Example]], Scorer]:
    train, scorer = _examples(spec, "train")
    # The test split decides how the task is scored: training data may well be of another format.
    if _given(spec, "test"):
        test, scorer = _examples(spec, "test")
        test = subset(test, spec.test_size, spec.seed)
    else:
        train, test = split_off(train, spec.test_size, spec.seed, "test")
    if _given(spec, "validation"):
        validation, _ = _examples(spec, "validation")
        validation = subset(validation, spec.validation_size, spec.seed)
    else:
        train, validation = split_off(train, spec.validation_size, spec.seed, "validation")
    return {"train": subset(train, spec.train_size, spec.seed), "validation": validation, "test": test}, scorer


def _given(spec: DataSpec, split: str) -> bool:
    return split in spec.files or getattr(spec, f"{split}_split") is not None


def _examples(spec: DataSpec, split: str) -> tuple[list[Example], Scorer]:
    """Of all the split's files, which must be scored alike."""
    if spec.hub is not None:
        return _parsed(spec, read_hub(spec.hub, spec.hub_config, getattr(spec, f"{split}_split")), spec.hub)
    examples: list[Example] = []
    scorers: dict[Scorer, str] = {}
    for file in spec.files[split]:
        more, scorer = _parsed(spec, read_jsonl(file), file)
        examples += more
        scorers.setdefault(scorer, file)
    if len(scorers) > 1:
        kinds = ", ".join(f"{file} ({scorer.value})" for scorer, file in scorers.items())
        raise DataError(f"files that are scored differently cannot be one split: {kinds}")
    return examples, next(iter(scorers))


def _parsed(spec: DataSpec, rows: list[Row], name: str) -> tuple[list[Example], Scorer]:
    mapped = {"prompt": spec.prompt_column, "completion": spec.completion_column, "messages": spec.messages_column}
    named = {key: column for key, column in mapped.items() if column is not None}
    absent = [column for column in named.values() if column not in rows[0].values]
    if absent:
        raise DataError(f"{rows[0].where}: no column {', '.join(absent)}; it has {', '.join(rows[0].values)}")
    if named:  # then the others say nothing of the format
        named |= {key: key for key in IDENTITIES if key in rows[0].values}
        rows = [Row(row.where, {key: row.values[column] for key, column in named.items()}) for row in rows]
    return to_examples(rows, Path(name).stem, spec.separator)
