"""Rows of the Hub's data sets to the local formats (schemas.py): multiple choice, math, code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def boolq(row: Row) -> dict[str, Any]:
    """Closed book, as in the LLM-Adapters protocol: the passage is left out."""
    return _choice(f"{str(row['question']).rstrip('?')}?", ["false", "true"], int(row["answer"]))


def piqa(row: Row) -> dict[str, Any]:
    return _choice(row["goal"], [row["sol1"], row["sol2"]], int(row["label"]))


def siqa(row: Row) -> dict[str, Any]:
    answers = [row[f"answer{letter}"] for letter in "ABC"]
    return _choice(row["question"], answers, int(row["label"]) - 1, context=row["context"])


def hellaswag(row: Row) -> dict[str, Any]:
    endings = [_plain(ending) for ending in row["endings"]]
    return _choice(f"{row['activity_label']}: {_plain(row['ctx'])}", endings, int(row["label"]))


def winogrande(row: Row) -> dict[str, Any]:
    return _choice(row["sentence"], [row["option1"], row["option2"]], int(row["answer"]) - 1)


def arc(row: Row) -> dict[str, Any]:
    choices = row["choices"]
    return _choice(row["question"], choices["text"], list(choices["label"]).index(row["answerKey"]))


def openbookqa(row: Row) -> dict[str, Any]:
    return arc({**row, "question": row["question_stem"]})


def gsm8k(row: Row) -> dict[str, Any]:
    final = str(row["answer"]).rsplit("####", 1)[1].strip().replace(",", "")
    return {"question": row["question"], "answer": row["answer"], "final_answer": final}


def svamp(row: Row) -> dict[str, Any]:
    body = str(row["Body"]).strip()
    body += "" if body.endswith((".", "?", "!", ",")) else "."
    return _number(f"{body} {row['Question']}", row["Answer"])


def multiarith(row: Row) -> dict[str, Any]:
    return _number(str(row["question"]).strip(), row["final_ans"])


def aqua(row: Row) -> dict[str, Any]:
    choices = [re.sub(r"^[A-E]\)\s*", "", option) for option in row["options"]]
    answer = f"{str(row['rationale']).strip()}\n#### {row['correct']}"
    return {"question": row["question"], "answer": answer, "final_answer": row["correct"], "choices": choices}


def _choice(question: str, choices: Sequence[str], answer: int, context: str = "") -> dict[str, Any]:
    return {"context": context, "question": question, "choices": list(choices), "answer": answer}


def _number(question: str, answer: Any) -> dict[str, Any]:
    text = str(answer).strip()
    text = text.removesuffix(".0")  # SVAMP writes 145.0 for 145
    return {"question": question, "answer": f"#### {text}", "final_answer": text}


def _plain(text: str) -> str:
    """WikiHow's [header], [title], [step] marks as plain text."""
    return " ".join(re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).split())
