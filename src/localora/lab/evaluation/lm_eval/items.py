"""What the YAML files in tasks/ call: our items in the harness's form, and our reading of a generated answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from localora.lab.data.example import Example, Scorer
from localora.lab.evaluation.answers import matches
from localora.lab.evaluation.score import ANSWER_COMPLETE
from localora.lab.evaluation.tasks import load_tasks

if TYPE_CHECKING:
    from datasets import DatasetDict


def load_items(
    localora_task: str, data_folder: str | None = None, examples: int | None = None, seed: int = 0, **_: Any
) -> DatasetDict:
    """The test items of one task; the arguments are the harness's metadata, with the model's among them.

    Args:
        data_folder: of local files; None reads the Hub.
        examples: at most so many, drawn by `seed` as `localora evaluate --examples` draws them.

    Raises:
        DataError: unusable data.
    """
    from datasets import Dataset, DatasetDict

    (task,) = load_tasks([localora_task], data_folder, examples, seed)
    to_row = _choice_row if task.scorer is Scorer.multiple_choice else _answer_row
    return DatasetDict({"test": Dataset.from_list([to_row(example) for example in task.examples])})


def score_answer(row: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, float]:
    """Exact match of the final answer, in the text up to where our own generation stops."""
    end = re.search(ANSWER_COMPLETE, outputs[0])
    return {"exact_match": float(matches(outputs[0][: end.end()] if end else outputs[0], row["answer"]))}


def _choice_row(example: Example) -> dict[str, Any]:
    """Choices without the space before them: the harness puts it there, and counts their bytes without it, as we do."""
    return {
        "id": example.id,
        "prompt": example.prompt,
        "choices": [choice.strip() for choice in example.choices],
        "answer": example.answer_index,
    }


def _answer_row(example: Example) -> dict[str, Any]:
    return {"id": example.id, "prompt": example.prompt, "completion": example.completion, "answer": example.answer}
