"""Known record formats, told apart by their keys, and their conversion to examples.

name              keys                                           scored by
chat              messages: [{role, content}, ...]               loss only
sharegpt          conversations: [{from, value}, ...]            loss only
prompt            prompt, completion                             loss; exact match if all end in "#### x"
math              question, answer, final_answer, (choices)      exact match
multiple_choice   question, choices, answer: int, (context)      multiple choice
humaneval         prompt, canonical_solution, test, entry_point  code
mbpp              text, code, test_list, (test_setup_code)       code
instruction       instruction, output, (input)                   loss only
text              text                                           loss only, on all of it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from localora.lab.data.example import DataError, Example, Scorer
from localora.lab.data.rows import Row

_FINAL_ANSWER = re.compile(r"####[ \t]*(\S[^\n]*?)\s*$")
IDENTITIES = ("id", "task_id")  # keys of a record's own name
LETTERS = "ABCDE"  # of a math problem's options; its answer is one of them
ROLES = {  # of ShareGPT's turns, whose names differ from one copy to the next
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}
_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")


Convert = Callable[[Row, str], Example]


@dataclass(frozen=True)
class Schema:
    """One record format: the keys every record has, and how to read it."""

    name: str
    keys: tuple[str, ...]
    scorer: Scorer
    convert: Convert


def to_examples(rows: Sequence[Row], name: str, separator: str | None = None) -> tuple[list[Example], Scorer]:
    """Convert records of one format, found from the keys of the first.

    `separator` stands between prompt and completion; None is a newline where neither side of the seam has white space.

    Raises:
        DataError: no rows, an unknown format, or a record that lacks a key or holds the wrong kind of value.
    """
    if not rows:
        raise DataError(f"{name} holds no examples")
    schema = _detect(rows[0])
    examples = []
    for index, row in enumerate(rows):
        missing = [key for key in schema.keys if key not in row.values]
        if missing:
            raise DataError(f"{row.where}: lacks the key(s) {', '.join(missing)} of the {schema.name} format")
        examples.append(schema.convert(row, _identity(row, f"{name}-{index}")))
    scorer = schema.scorer
    if schema.name == "prompt":
        if all(example.answer is not None for example in examples):
            scorer = Scorer.exact_match
        examples = [_joined(example, separator) for example in examples]
    return examples, scorer


def _detect(row: Row) -> Schema:
    for schema in SCHEMAS:
        if all(key in row.values for key in schema.keys):
            return schema
    known = "; ".join(f"{schema.name}: {', '.join(schema.keys)}" for schema in SCHEMAS)
    raise DataError(f"{row.where}: unknown format with the keys {', '.join(row.values)}. Known formats: {known}")


def _identity(row: Row, default: str) -> str:
    for key in IDENTITIES:
        if isinstance(row.values.get(key), str | int):
            return str(row.values[key])
    return default


def _text(row: Row, key: str) -> str:
    value = row.values[key]
    if not isinstance(value, str):
        raise DataError(f"{row.where}: {key} must be text, found {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{row.where}: {key} is empty; remove the record or fill it in")
    return value


def _texts(row: Row, key: str, at_least: int) -> tuple[str, ...]:
    value = row.values[key]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise DataError(f"{row.where}: {key} must be a list of texts")
    if len(value) < at_least:
        raise DataError(f"{row.where}: {key} must hold at least {at_least}, found {len(value)}")
    if not all(item.strip() for item in value):
        raise DataError(f"{row.where}: {key} holds an empty text; remove it or fill it in")
    return tuple(value)


def _prompt(row: Row, identity: str) -> Example:
    prompt, completion = _text(row, "prompt"), _text(row, "completion")
    found = _FINAL_ANSWER.search(completion)
    return Example(identity, prompt, completion, answer=found.group(1) if found else None)


def _joined(example: Example, separator: str | None) -> Example:
    prompt, completion = example.prompt, example.completion
    if separator is None:
        separator = "" if prompt[-1].isspace() or completion[0].isspace() else "\n"
    return replace(example, completion=separator + completion)


def _chat(row: Row, identity: str) -> Example:
    return _of_turns(row, identity, _turns(row, "messages"))


def _sharegpt(row: Row, identity: str) -> Example:
    return _of_turns(row, identity, _turns(row, "conversations"))


def _turns(row: Row, key: str) -> list[dict[str, Any]]:
    """The turns under `key` as {role, content}, which ShareGPT calls {from, value}."""
    given = row.values[key]
    if not isinstance(given, list | tuple) or len(given) < 2:
        raise DataError(f"{row.where}: {key} must be a list of at least two turns")
    turns = []
    for number, turn in enumerate(given):
        if isinstance(turn, dict) and "from" in turn:
            if turn["from"] not in ROLES:
                raise DataError(f"{row.where}: turn {number} is from {turn['from']!r}; known are {', '.join(ROLES)}")
            turn = {"role": ROLES[turn["from"]], "content": turn.get("value")}
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str) or not _content(turn):
            raise DataError(f"{row.where}: turn {number} needs the texts role and content (or from and value)")
        turns.append(turn)
    return turns


def _of_turns(row: Row, identity: str, messages: list[dict[str, Any]]) -> Example:
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{row.where}: the last turn must be the assistant's, found {messages[-1]['role']!r}")
    prompt = "\n".join(f"{turn['role']}: {turn['content']}" for turn in messages[:-1])
    return Example(identity, prompt, messages[-1]["content"], messages=tuple(messages))


def _content(turn: dict[str, Any]) -> bool:
    return isinstance(turn.get("content"), str) and bool(turn["content"].strip())


def _multiple_choice(row: Row, identity: str) -> Example:
    choices, index = _texts(row, "choices", 2), row.values["answer"]
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
        raise DataError(f"{row.where}: answer must be the position 0..{len(choices) - 1} of a choice, found {index!r}")
    context = row.values.get("context") or ""
    question = f"{context} {_text(row, 'question')}".strip()
    completions = tuple(f" {choice}" for choice in choices)
    return Example(
        identity,
        f"Question: {question}\nAnswer:",
        completions[index],
        choices=completions,
        answer_index=index,
    )


def _math(row: Row, identity: str) -> Example:
    question = _text(row, "question")
    if row.values.get("choices"):
        options = _texts(row, "choices", 2)
        question = "\n".join([question, *(f"{letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))])
    # GSM8K's <<48/2=24>> marks address a calculator we do not have.
    rationale = _CALCULATOR_MARK.sub("", _text(row, "answer"))
    return Example(
        identity, f"Question: {question}\nAnswer:", f" {rationale}", answer=_text(row, "final_answer").strip()
    )


def _humaneval(row: Row, identity: str) -> Example:
    tests = f"{_text(row, 'test')}\ncheck({_text(row, 'entry_point')})"
    return Example(identity, _text(row, "prompt"), _text(row, "canonical_solution"), tests=tests)


def _mbpp(row: Row, identity: str) -> Example:
    """The task and its tests as a docstring, as in the data set's own protocol; so prompt + code runs."""
    tests = _texts(row, "test_list", 1)
    prompt = '"""\n' + "\n".join([_text(row, "text"), *tests]) + '\n"""'
    setup = str(row.values.get("test_setup_code") or "")
    return Example(identity, prompt, "\n" + _text(row, "code"), tests="\n".join([setup, *tests]).strip())


def _instruction(row: Row, identity: str) -> Example:
    prompt = f"### Instruction:\n{_text(row, 'instruction')}\n\n"
    given = row.values.get("input") or ""
    if given:
        prompt += f"### Input:\n{given}\n\n"
    return Example(identity, prompt + "### Response:", "\n" + _text(row, "output"))


def _plain_text(row: Row, identity: str) -> Example:
    return Example(identity, "", _text(row, "text"))


SCHEMAS = (  # in order of precedence: a format whose keys another one's contain comes after it
    Schema("chat", ("messages",), Scorer.none, _chat),
    Schema("sharegpt", ("conversations",), Scorer.none, _sharegpt),
    Schema("prompt", ("prompt", "completion"), Scorer.none, _prompt),
    Schema("math", ("question", "answer", "final_answer"), Scorer.exact_match, _math),
    Schema("multiple_choice", ("question", "choices", "answer"), Scorer.multiple_choice, _multiple_choice),
    Schema("humaneval", ("prompt", "canonical_solution", "test", "entry_point"), Scorer.code, _humaneval),
    Schema("mbpp", ("text", "code", "test_list"), Scorer.code, _mbpp),
    Schema("instruction", ("instruction", "output"), Scorer.none, _instruction),
    Schema("text", ("text",), Scorer.none, _plain_text),
)
