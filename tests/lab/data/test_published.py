"""Published tasks by name: from files of the four schemas, from the Hub's columns, and in both protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import published_files
from localora.lab.data.example import DataError, Scorer
from localora.lab.data.published import load as loading
from localora.lab.data.published.load import load_published
from localora.lab.data.published.registry import FAMILIES, TASKS, parse_tasks
from localora.lab.data.rows import Row

REAL = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_files.write_tasks(tmp_path_factory.mktemp("data"))


def load(name: str, folder: Path | None) -> Any:
    (task,) = parse_tasks([name])
    return load_published(task, folder)


def test_names_are_tasks_families_and_protocols():
    assert [str(name) for name in parse_tasks(["boolq", "boolq:llm-adapters", "code"])] == [
        "boolq:likelihood", "boolq:llm-adapters", "humaneval:execution", "mbpp:execution",
    ]  # fmt: skip
    assert len(parse_tasks(["commonsense:llm-adapters"])) == 8
    assert [len(FAMILIES[family]) for family in ("commonsense", "math", "code")] == [8, 6, 2]
    assert {task.name for task in TASKS.values()} == {name for names in FAMILIES.values() for name in names}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["bolq"], "no task is called 'bolq'; known: commonsense, math, code, boolq"),
        (["gsm8k:likelihood"], "gsm8k has no protocol 'likelihood'; it has rationale"),
        (["commonsense", "piqa"], "given twice: piqa:likelihood"),
    ],
)
def test_names_that_are_none(names, message):
    with pytest.raises(DataError, match=message):
        parse_tasks(names)


def test_multiple_choice_by_likelihood(folder):
    examples, scorer = load("siqa", folder)
    assert scorer is Scorer.multiple_choice
    assert examples[1].prompt == "Question: Lee won. What next?\nAnswer:"
    assert examples[1].choices == (" cry all day", " cheer", " sleep")
    assert (examples[1].completion, examples[1].answer_index, examples[1].id) == (" cheer", 1, "s1")


def test_multiple_choice_as_llm_adapters_writes_it(folder):
    examples, scorer = load("siqa:llm-adapters", folder)
    assert scorer is Scorer.answer_word
    assert examples[0].choices == ("answer1", "answer2", "answer3")
    assert "Kim fell. How does Kim feel?\nanswer1: hurt\nanswer2: very glad\nanswer3: ünsure\n" in examples[0].prompt
    assert examples[0].prompt.endswith("### Response:")
    assert (examples[1].completion, examples[1].answer_index) == ("\nThe right one is answer2", 1)


def test_yes_or_no_has_its_own_words(folder):
    examples, _ = load("boolq:llm-adapters", folder)
    assert [example.choices[example.answer_index] for example in examples] == ["true", "false", "false"]
    assert "true or false?\nis ice cold?" in examples[0].prompt
    assert "false: " not in examples[0].prompt


def test_mathematics_without_the_calculators_marks(folder):
    examples, scorer = load("gsm8k", folder)
    assert scorer is Scorer.exact_match
    assert examples[0].completion == " 2+3=5\n#### 5"
    assert [example.answer for example in examples] == ["5", "1.5", "-1234"]
    (aqua,), _ = load("aqua", folder)
    assert aqua.prompt == "Question: 1 + 1?\nA) 1\nB) 2\nC) 3\nD) 4\nE) 5\nAnswer:"
    assert aqua.answer == "B"


def test_code_with_its_tests(folder):
    (humaneval,), scorer = load("humaneval", folder)
    assert scorer is Scorer.code
    assert humaneval.tests == published_files.HUMANEVAL[0]["test"] + "\ncheck(add)"
    assert humaneval.prompt + humaneval.completion == 'def add(a, b):\n    """The sum."""\n    return a + b\n'
    (mbpp,), scorer = load("mbpp", folder)
    assert scorer is Scorer.code
    assert mbpp.tests == "two = 2\nassert double(two) == 4\nassert double(0) == 0"
    assert "assert double(two) == 4" in mbpp.prompt
    scope: dict[str, Any] = {}
    exec(mbpp.prompt + mbpp.completion + "\n" + mbpp.tests, scope)  # ours, and harmless


def test_files_may_lie_in_the_folder_itself(tmp_path):
    published_files.write_rows(tmp_path / "boolq_test.jsonl", published_files.BOOLQ)
    assert len(load("boolq", tmp_path)[0]) == 3


def test_missing_files_name_their_place(folder, tmp_path):
    with pytest.raises(DataError, match=r"piqa has no test file in .*put it at commonsense/piqa_test.jsonl, or leave"):
        load("piqa", folder)
    with pytest.raises(DataError, match=r"addsub has no test file in .*put it at math/addsub_test.jsonl$"):
        load("addsub", folder)
    with pytest.raises(DataError, match=r"data folder .* does not exist"):
        load("boolq", tmp_path / "no")


def test_a_broken_row_names_its_line(tmp_path):
    path = published_files.write_rows(tmp_path / "boolq_test.jsonl", [published_files.BOOLQ[0] | {"answer": 2}])
    with pytest.raises(DataError, match=rf"{path}:1: answer must be the position 0..1 of a choice, found 2"):
        load("boolq", tmp_path)


HUB_ROWS: dict[str, tuple[dict[str, Any], str, str]] = {  # row, what the prompt holds, the completion
    "boolq": ({"question": "is ice cold", "passage": "Ice.", "answer": True}, "Question: is ice cold?\n", " true"),
    "piqa": ({"goal": "Dry hands", "sol1": "towel", "sol2": "sand", "label": 1}, "Question: Dry hands\n", " sand"),
    "siqa": (
        {"context": "Kim fell.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
        "Question: Kim fell. Why?\n",
        " c",
    ),
    "hellaswag": (
        {"activity_label": "Cooking", "ctx": "Eggs [title] Boil  them", "endings": ["[step] well", "no"], "label": "0"},
        "Question: Cooking: Eggs. Boil them\n",
        " well",
    ),
    "winogrande": (
        {"sentence": "Ann saw Eve as _ hid.", "option1": "Ann", "option2": "Eve", "answer": "2"},
        "Question: Ann saw Eve as _ hid.\n",
        " Eve",
    ),
    "arc_challenge": (
        {"question": "Up?", "choices": {"text": ["no", "yes"], "label": ["1", "2"]}, "answerKey": "2"},
        "Question: Up?\n",
        " yes",
    ),
    "openbookqa": (
        {"question_stem": "The sun", "choices": {"text": ["shines", "sings"], "label": ["A", "B"]}, "answerKey": "A"},
        "Question: The sun\n",
        " shines",
    ),
    "gsm8k": ({"question": "How many?", "answer": "So\n#### 1,200"}, "Question: How many?\n", " So\n#### 1,200"),
    "svamp": ({"Body": "Two apples", "Question": "How many?", "Answer": "2.0"}, "Two apples. How many?\n", " #### 2"),
    "multiarith": ({"question": " How many?", "final_ans": "7"}, "Question: How many?\n", " #### 7"),
    "aqua": (
        {"question": "1+1?", "options": ["A)1", "B)2"], "rationale": "Two.", "correct": "B"},
        "A) 1\nB) 2\n",
        " Two.\n#### B",
    ),
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_the_hubs_columns_become_the_same_examples(name, monkeypatch):
    row, prompt, completion = HUB_ROWS[name]
    asked = []
    monkeypatch.setattr(loading, "read_hub", lambda *names: asked.append(names) or [Row("here", row)])
    (example,), _ = load(name, None)
    assert prompt in example.prompt
    assert example.completion == completion
    split = "validation" if name in ("boolq", "piqa", "siqa", "hellaswag", "winogrande") else "test"
    assert (asked[0][0], asked[0][2]) == (TASKS[name].dataset, split)


def test_the_hub_with_other_columns(monkeypatch):
    monkeypatch.setattr(loading, "read_hub", lambda *_: [Row("google/boolq, row 0", {"question": "x"})])
    with pytest.raises(DataError, match=r"google/boolq, row 0: not the columns of boolq that we know"):
        load("boolq", None)
    with pytest.raises(DataError, match="singleeq is not on the Hub"):
        load("singleeq", None)


@pytest.mark.skipif(not REAL.is_dir(), reason="no data files at shared/data beside the repository")
@pytest.mark.parametrize(
    ("name", "count"),
    [("piqa", 460), ("piqa:llm-adapters", 460), ("arc_challenge:llm-adapters", 586), ("aqua", 127), ("humaneval", 82)],
)
def test_real_files(name, count):
    examples, scorer = load(name, REAL)
    assert len(examples) == len({example.id for example in examples}) == count
    if scorer is Scorer.answer_word:
        assert all(example.answer in example.prompt for example in examples)
        assert all(example.completion.endswith(str(example.answer)) for example in examples)
