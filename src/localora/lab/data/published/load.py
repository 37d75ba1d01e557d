"""The test examples of a published task, in the form that its protocol asks for.

In the llm-adapters protocol the choices stand numbered in the prompt, and the model writes which one is right. After
the commonsense protocol of LLM-Adapters (Hu et al., EMNLP 2023), in our words: the answer words are theirs (true/false,
solution1/2, ending1..4, option1/2, answer1..n), the sentences are not. A model is right when the first answer word in
what it writes is the right one. Prompts show all choices, so its numbers are not comparable with those of the
likelihood protocol, nor (the wording differs) with published ones to the point.
"""

from __future__ import annotations

from pathlib import Path

from localora.lab.data.example import DataError, Example, Scorer
from localora.lab.data.published.registry import PublishedTask, TaskName
from localora.lab.data.rows import Row, read_hub, read_jsonl
from localora.lab.data.schemas import to_examples

_ASK = {
    "solution": "Which solution reaches this goal?",
    "ending": "Which ending continues this text?",
    "option": "Which option belongs in the blank of this sentence?",
    "answer": "Which answer to this question is right?",
}


def load_published(name: TaskName, folder: str | Path | None) -> tuple[list[Example], Scorer]:
    """The test examples and how they are scored: from `folder`, or the Hub if None.

    Raises:
        DataError: the folder or the Hub has none, or a row is malformed.
    """
    task = name.task
    rows = _hub_rows(task) if folder is None else read_jsonl(_file(task, Path(folder).expanduser()))
    examples, scorer = to_examples(rows, f"{task.name}-test")
    if name.protocol == "llm-adapters":
        return [adapters_example(task, example) for example in examples], Scorer.answer_word
    return examples, scorer


def _file(task: PublishedTask, folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"the data folder {folder} does not exist (relative paths start at {Path.cwd()})")
    file = f"{task.name}_test.jsonl"
    found = next((path for path in (folder / task.family / file, folder / file) if path.is_file()), None)
    if found is None:
        raise DataError(
            f"{task.name} has no test file in {folder}; put it at {task.family}/{file}"
            + (", or leave the folder out to read the Hub" if task.dataset else "")
        )
    return found


def _hub_rows(task: PublishedTask) -> list[Row]:
    if task.dataset is None:
        raise DataError(f"{task.name} is not on the Hub in a form we read; give the folder of its test file")
    rows = read_hub(task.dataset, task.config, task.split)
    return [Row(row.where, _converted(task, row)) for row in rows]


def _converted(task: PublishedTask, row: Row) -> dict[str, object]:
    try:
        return task.convert(row.values)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{row.where}: not the columns of {task.name} that we know ({error!r})") from error


def adapters_example(task: PublishedTask, example: Example) -> Example:
    """The multiple-choice `example` in this form; its `choices` become the answer words."""
    question = example.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    if task.option:
        words = tuple(f"{task.option}{number}" for number in range(1, len(example.choices) + 1))
        listed = [f"{word}: {choice.strip()}" for word, choice in zip(words, example.choices, strict=True)]
        asked = "\n".join([_ASK[task.option], question, *listed])
    else:  # its choices are the words
        words = tuple(choice.strip() for choice in example.choices)
        asked = f"Is the answer to this question {' or '.join(reversed(words))}?\n{question}"
    assert example.answer_index is not None
    right = words[example.answer_index]
    return Example(
        example.id,
        f"### Instruction:\n{asked}\nReply with one of: {', '.join(words)}\n\n### Response:",
        f"\nThe right one is {right}",
        answer=right,
        choices=words,
        answer_index=example.answer_index,
    )
