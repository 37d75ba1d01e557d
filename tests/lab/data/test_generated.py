from __future__ import annotations

import re
from random import Random

import pytest

from localora.lab.data.example import DataError, Scorer
from localora.lab.data.generated import facts
from localora.lab.data.generated.problem import draw, split_of
from localora.lab.data.generated.registry import TASKS
from localora.lab.data.load import load_task

SIZES = {"train_size": 300, "validation_size": 40, "test_size": 60}
EVERY_TASK = [(name, difficulty) for name in TASKS for difficulty in (1, 3, 7)]


def load(name: str, difficulty: int, **changes: int):
    return load_task({"task": name, "difficulty": difficulty, **SIZES, **changes})


@pytest.mark.parametrize(("name", "difficulty"), EVERY_TASK)
def test_sizes_and_seeds(name, difficulty):
    data = load(name, difficulty)
    assert (len(data.train), len(data.validation), len(data.test)) == (300, 40, 60)
    assert data == load(name, difficulty)
    assert data.hashes != load(name, difficulty, seed=1).hashes
    assert len({e.id for e in data.train + data.validation + data.test}) == 400
    assert all(e.completion[0] in " \n" and not e.prompt[-1].isspace() for e in data.train)


@pytest.mark.parametrize("name", TASKS)
def test_splits_share_no_key_whatever_the_seed(name):
    """Keys are drawn anew with other seeds, and still never cross over."""
    generator, _ = TASKS[name]
    keys: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for seed in range(4):
        random = Random(seed)
        for _ in range(500):
            key = generator(random, 2).key
            keys[split_of(key)].add(key)
    shares = {split: len(found) / sum(map(len, keys.values())) for split, found in keys.items()}
    assert shares["train"] == pytest.approx(0.8, abs=0.05)
    assert shares["test"] == pytest.approx(0.1, abs=0.03)


def test_draw_keeps_to_its_split():
    """The calculation, read back from the text, never occurs in two splits; names and objects may."""
    data = load("arithmetic", 1, train_size=1500, test_size=200, seed=3)
    other = load("arithmetic", 1, train_size=10, test_size=200, seed=4)
    trained = {e.completion for e in data.train}
    assert not trained & {e.completion for e in data.test + data.validation + other.test}


@pytest.mark.parametrize("difficulty", [1, 4])
def test_arithmetic_rationales_are_right(difficulty):
    data = load("arithmetic", difficulty)
    assert data.scorer is Scorer.exact_match
    longest = 0
    for example in data.train:
        *lines, last = example.completion.strip().split("\n")
        assert last == f"#### {example.answer}"
        value = re.search(r"has (\d+)", example.prompt).group(1)
        for line in lines:
            left, sign, right, result = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line).groups()
            assert left == value
            assert eval(f"{left} {sign} {right}") == int(result) > 0
            assert right in example.prompt
            value = result
        assert value == example.answer
        longest = max(longest, len(lines))
    assert longest == difficulty


@pytest.mark.parametrize("difficulty", [1, 4])
def test_facts_answers_follow_from_the_prompt(difficulty):
    """An independent reader: looks the facts up in the text and follows the question's chain."""
    data = load("facts", difficulty)
    assert data.scorer is Scorer.multiple_choice
    most = 0
    for example in data.train:
        text, question = re.fullmatch(r"Facts: (.*)\nQuestion: (.*)\nAnswer:", example.prompt).groups()
        related, attribute = {}, {}
        for fact in text.rstrip(".").split(". "):
            if relation := re.fullmatch(r"(\w+)'s (\w+) is (\w+)", fact):
                related[relation.group(1), relation.group(2)] = relation.group(3)
            else:
                attribute[fact.split()[0]] = fact.split()[-1]
        person, *chain = re.search(r"does (.*) (?:live|work as|own|like)\?", question).group(1).split("'s ")
        for relation_name in chain:
            person = related[person, relation_name]
        assert example.choices[example.answer_index] == example.completion == f" {attribute[person]}"
        assert sorted(example.choices) == sorted(f" {value}" for value in attribute.values())
        most = max(most, len(chain) + 1)
    assert most == difficulty


def test_facts_answers_stand_at_every_position():
    positions = [e.answer_index for e in load("facts", 1).train]
    assert all(positions.count(i) > 50 for i in range(facts._PEOPLE))


@pytest.mark.parametrize("difficulty", [1, 3])
def test_functions_pass_their_tests_and_a_wrong_body_fails(difficulty):
    data = load("functions", difficulty)
    assert data.scorer is Scorer.code
    caught = 0
    for example in data.train:
        exec(f"{example.prompt}{example.completion}\n{example.tests}", {})
        try:
            exec(f"{example.prompt}\n    return numbers\n{example.tests}", {})
        except AssertionError:
            caught += 1
    # Few functions return their list unchanged on four random lists ("Sort the numbers. Return the list" does not).
    assert caught > 0.95 * len(data.train)


def test_difficulty_one_fits_a_short_sequence():
    """Quick to train on: at most 80 tokens of a word-piece tokenizer, so well below 80 words and marks."""
    for name in TASKS:
        for example in load(name, 1).train:
            assert len(re.findall(r"\w+|[^\w\s]", example.prompt + example.completion)) < 75


def test_more_than_there_are_is_refused():
    def only_one(random, difficulty):
        return TASKS["functions"][0](Random(0), difficulty)

    split = split_of(only_one(None, 1).key)
    with pytest.raises(
        DataError, match=rf"toy of difficulty 1 has about 1 different {split} problems, 5 were asked for"
    ):
        draw(only_one, 1, split, 5, 0, "toy")
