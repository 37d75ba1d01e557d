from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from pydantic import ValidationError

from localora.lab.data.example import DataError, Scorer, content_hash
from localora.lab.data.load import load_task
from localora.lab.data.split import OverlapError


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(count: int, word: str = "q") -> list[dict]:
    return [{"prompt": f"{word}{i}", "completion": f"a{i}"} for i in range(count)]


def test_one_file_is_split_in_three(tmp_path):
    path = write(tmp_path / "mine.jsonl", pairs(40))
    data = load_task({"path": path})
    assert (len(data.train), len(data.validation), len(data.test)) == (33, 3, 4)
    assert data.name == "mine"
    assert data.scorer is Scorer.none
    assert {e.prompt for e in data.train + data.validation + data.test} == {f"q{i}" for i in range(40)}
    assert data.hashes == {s: content_hash(getattr(data, s)) for s in ("train", "validation", "test")}
    assert data == load_task({"path": path})
    assert data.hashes != load_task({"path": path, "seed": 1}).hashes


def test_given_files_are_used_and_sizes_cap_them(tmp_path):
    spec = {
        "path": write(tmp_path / "train.jsonl", pairs(20)),
        "validation_path": write(tmp_path / "val.jsonl", pairs(20, "v")),
        "test_path": write(tmp_path / "test.jsonl", pairs(20, "t")),
    }
    whole = load_task(spec)
    assert [e.prompt for e in whole.test] == [f"t{i}" for i in range(20)]
    assert (len(whole.train), len(whole.validation)) == (20, 20)
    capped = load_task({**spec, "train_size": 5, "validation_size": 6, "test_size": 7})
    assert (len(capped.train), len(capped.validation), len(capped.test)) == (5, 6, 7)
    assert all(e.prompt[0] == "v" for e in capped.validation)


def test_the_test_file_decides_the_scorer(tmp_path):
    tests = [{"id": f"t{i}", "question": f"w{i}", "answer": f"#### {i}", "final_answer": str(i)} for i in range(5)]
    data = load_task(
        {"path": write(tmp_path / "train.jsonl", pairs(20)), "test_path": write(tmp_path / "t.jsonl", tests)}
    )
    assert data.scorer is Scorer.exact_match
    assert data.test[3].answer == "3"


def test_overlapping_files_are_refused(tmp_path):
    path = write(tmp_path / "train.jsonl", pairs(20))
    test = write(tmp_path / "test.jsonl", [{"id": "leak", "prompt": "Q7!", "completion": "a"}])
    with pytest.raises(OverlapError, match="leak"):
        load_task({"path": path, "test_path": test})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n', r"d\.jsonl:2: not valid JSON"),
        ('\n{"prompt": "a", "completion": "b"}\n\n{"prompt": "c"}\n', r"d\.jsonl:4: lacks the key\(s\) completion"),
        ("1\n", r"d\.jsonl:1: expected a JSON object, found int"),
        ('[{"prompt": "a", "completion": "b"}, 2]', r"d\.jsonl, item 1: expected a JSON object, found int"),
        (
            '[{"prompt": "a",\n "completion" "b"}]',
            r"d\.jsonl: not valid JSON \(Expecting ':' delimiter, line 2, column 15",
        ),
        (
            '{"conversations": [{"from": "human", "value": "a"}, {"from": "tool", "value": "b"}]}\n',
            "turn 1 is from 'tool'",
        ),
        (
            '{"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "b"}]}\n',
            "turn 0 needs the texts",
        ),
        (
            '{"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}\n',
            "last turn must be the",
        ),
        ('{"frage": "a"}\n', r"d\.jsonl:1: unknown format with the keys frage\. Known formats: .*mbpp"),
        ("\n\n", r"d\.jsonl holds no examples"),
        ('{"prompt": "a", "completion": 3}\n', r"d\.jsonl:1: completion must be text, found int"),
        ('{"prompt": "a", "completion": " "}\n', r"d\.jsonl:1: completion is empty"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "at least two turns"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "a"}]}\n',
            "last turn must be the assistant's",
        ),
        ('{"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}\n', "turn 0 needs the texts role"),
        ('{"question": "a", "choices": ["x", "y"], "answer": 2}\n', r"position 0\.\.1 of a choice, found 2"),
        ('{"question": "a", "choices": ["x"], "answer": 0}\n', "choices must hold at least 2"),
        ('{"question": "a", "choices": ["x", " "], "answer": 0}\n', "choices holds an empty text"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "d.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_task({"path": str(path)})


def test_files_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        load_task({"path": str(tmp_path / "nowhere.jsonl")})
    with pytest.raises(DataError, match="is a folder"):
        load_task({"path": str(tmp_path)})
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9", "completion": "b"}')
    with pytest.raises(DataError, match="is not UTF-8"):
        load_task({"path": str(tmp_path / "latin.jsonl")})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"task": "arithmetic", "dificulty": 2}, "dificulty"),
        ({"task": "algebra"}, "arithmetic"),
        ({"task": "facts", "difficulty": 0}, "difficulty"),
        ({}, "exactly one of task, path, hub"),
        ({"task": "facts", "path": "x"}, "exactly one of task, path, hub"),
        ({"task": "facts", "test_path": "x"}, "test_path belong to path data"),
        ({"path": "x", "prompt_column": "q", "completion_column": "a"}, "belong to hub data"),
        ({"hub": "x", "prompt_column": "q"}, "both prompt_column and completion_column"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValidationError, match=message):
        load_task(spec)


@pytest.mark.parametrize(
    ("prompt", "completion", "separator", "text"),
    [
        ("Why?", "So.", None, "Why?\nSo."),
        ("Why?", " So.", None, "Why? So."),
        ("Why?\n", "So.", None, "Why?\nSo."),
        ("Why?", "So.", "", "Why?So."),
        ("Why?", "So.", " -> ", "Why? -> So."),
    ],
)
def test_the_seam_of_prompt_and_completion(tmp_path, prompt, completion, separator, text):
    rows = [{"prompt": f"{i}{prompt}", "completion": completion} for i in range(10)]
    data = load_task({"path": write(tmp_path / "d.jsonl", rows), "separator": separator})
    assert all((e.prompt + e.completion)[1:] == text for e in data.train)


def test_marked_answers_make_exact_match(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": f"so\n#### {i}"} for i in range(10)]
    data = load_task({"path": write(tmp_path / "d.jsonl", rows)})
    assert data.scorer is Scorer.exact_match
    assert all(e.answer == e.prompt[1:] for e in data.train)
    rows[3]["completion"] = "no answer"
    assert load_task({"path": write(tmp_path / "d.jsonl", rows)}).scorer is Scorer.none


def test_hub_columns_are_mapped(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(
            [{"question": f"{split} {i}?", "answer": f"well\n#### {i}", "extra": None} for i in range(10)]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = {"hub": "some/math", "hub_config": "main", "test_split": "test"}
    spec |= {"prompt_column": "question", "completion_column": "answer"}
    data = load_task(spec)
    assert sorted(asked) == [("some/math", "main", "test"), ("some/math", "main", "train")]
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 1, 10)
    assert (data.test[4].prompt, data.test[4].completion) == ("test 4?", "\nwell\n#### 4")
    assert data.scorer is Scorer.exact_match
    with pytest.raises(DataError, match=r"some/math train, row 0: no column prompt_; it has question, answer, extra"):
        load_task({**spec, "prompt_column": "prompt_"})


def test_sharegpt_is_read_from_a_json_list(tmp_path):
    turns = [("system", "Be brief."), ("human", "Hi {i}"), ("gpt", "Hello")]
    rows = [
        {"id": f"c{i}", "conversations": [{"from": name, "value": value.format(i=i)} for name, value in turns]}
        for i in range(10)
    ]
    (tmp_path / "chats.json").write_text(json.dumps(rows, indent=1))
    data = load_task({"path": str(tmp_path / "chats.json")})
    example = next(e for e in data.train + data.validation + data.test if e.id == "c3")
    assert example.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi 3"},
        {"role": "assistant", "content": "Hello"},
    )
    assert (example.prompt, example.completion) == ("system: Be brief.\nuser: Hi 3", "Hello")
    assert data.scorer is Scorer.none
    assert len(data.train) == 8


def test_plain_texts_have_no_prompt_and_are_told_apart_by_their_words(tmp_path):
    data = load_task({"path": write(tmp_path / "texts.jsonl", [{"text": f"Text {i}."} for i in range(20)])})
    assert (len(data.train), len(data.validation), len(data.test)) == (17, 1, 2)
    assert {(e.prompt, e.completion) for e in data.train + data.validation + data.test} == {
        ("", f"Text {i}.") for i in range(20)
    }
    train = write(tmp_path / "train.jsonl", [{"text": f"Text {i}."} for i in range(20)])
    test = write(tmp_path / "test.jsonl", [{"text": "text 7"}])
    with pytest.raises(OverlapError):
        load_task({"path": train, "test_path": test})


def test_hub_chats(monkeypatch):
    chat = [{"role": "user", "content": "Hi {i}"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"talk": [{**turn, "content": turn["content"].format(i=i)} for turn in chat]} for i in range(10)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    data = load_task({"hub": "some/chat", "messages_column": "talk"})
    assert data.train[0].messages[1] == {"role": "assistant", "content": "Hello"}
    assert data.train[0].prompt.startswith("user: Hi ")


@pytest.mark.parametrize("error", [datasets.exceptions.DatasetNotFoundError("absent"), ConnectionError("offline")])
def test_hub_errors_name_the_data_set_and_the_remedy(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"'some/thing'.*(absent|offline)\n.*set `path`"):
        load_task({"hub": "some/thing"})


def test_several_files_make_one_split(tmp_path):
    first, second = write(tmp_path / "one.jsonl", pairs(20)), write(tmp_path / "two.jsonl", pairs(20, "w"))
    data = load_task({"path": [first, second], "validation_path": [write(tmp_path / "v.jsonl", pairs(3, "v"))]})
    assert data.name == "one+two"
    assert {e.prompt for e in data.train + data.test} == {f"{word}{i}" for word in "qw" for i in range(20)}
    assert len(data.validation) == 3


def test_files_that_are_scored_differently_are_refused(tmp_path):
    numbers = [{"id": "t", "question": "w", "answer": "#### 1", "final_answer": "1"}]
    choices = [{"id": "c", "task": "x", "context": "", "question": "q?", "choices": ["a", "b"], "answer": 0}]
    files = [write(tmp_path / "n.jsonl", numbers), write(tmp_path / "c.jsonl", choices)]
    with pytest.raises(DataError, match=r"scored differently.*n\.jsonl \(exact_match\).*c\.jsonl \(multiple_choice\)"):
        load_task({"path": write(tmp_path / "train.jsonl", pairs(20)), "test_path": files})
