"""Small files of published tasks, one of each schema, as `localora evaluate --data` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BOOLQ = [
    {"id": f"b{i}", "task": "boolq", "context": "", "question": q, "choices": ["false", "true"], "answer": answer}
    for i, (q, answer) in enumerate([("is ice cold?", 1), ("is fire cold?", 0), ("do cats bark?", 0)])
]
SIQA = [
    {
        "id": "s0",
        "task": "siqa",
        "context": "Kim fell.",
        "question": "How does Kim feel?",
        "choices": ["hurt", "very glad", "ünsure"],
        "answer": 0,
    },
    {
        "id": "s1",
        "task": "siqa",
        "context": "Lee won.",
        "question": "What next?",
        "choices": ["cry all day", "cheer", "sleep"],
        "answer": 1,
    },
]
ARC = [
    {
        "id": f"a{i}",
        "task": "arc_easy",
        "context": "",
        "question": f"Which number comes after {i}?",
        "choices": [str(i + 1), f"{i} again", str(i - 1), "none of these"][: 3 + i % 2],
        "answer": 0,
    }
    for i in range(5)
]
GSM8K = [
    {"id": "g0", "task": "gsm8k", "question": "2 and 3?", "answer": "2+3=<<2+3=5>>5\n#### 5", "final_answer": "5"},
    {"id": "g1", "task": "gsm8k", "question": "Half of 3?", "answer": "3/2=1.5\n#### 1.5", "final_answer": "1.5"},
    {"id": "g2", "task": "gsm8k", "question": "A debt?", "answer": "5-1,239\n#### -1234", "final_answer": "-1234"},
]
AQUA = [
    {
        "id": "q0",
        "task": "aqua",
        "question": "1 + 1?",
        "choices": ["1", "2", "3", "4", "5"],
        "answer": "It is two.\n#### B",
        "final_answer": "B",
    }
]
HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'def add(a, b):\n    """The sum."""\n',
        "entry_point": "add",
        "canonical_solution": "    return a + b\n",
        "test": "def check(f):\n    assert f(1, 2) == 3\n    assert f(0, 0) == 0\n",
    }
]
MBPP = [
    {
        "task_id": 601,
        "text": "Write a function to double a number.",
        "code": "def double(x):\n    return 2 * x",
        "test_setup_code": "two = 2",
        "test_list": ["assert double(two) == 4", "assert double(0) == 0"],
        "challenge_test_list": [],
    }
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "commonsense/boolq": BOOLQ,
    "commonsense/siqa": SIQA,
    "commonsense/arc_easy": ARC,
    "math/gsm8k": GSM8K,
    "math/aqua": AQUA,
    "code/humaneval": HUMANEVAL,
    "code/mbpp": MBPP,
}


def write_tasks(folder: Path) -> Path:
    """FAMILY/NAME_test.jsonl for every task of ROWS."""
    for name, rows in ROWS.items():
        write_rows(folder / f"{name}_test.jsonl", rows)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
