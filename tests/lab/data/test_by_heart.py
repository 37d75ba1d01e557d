"""Facts to learn by heart: what is asked was trained on, and validation asks other facts than test."""

from __future__ import annotations

import re

import pytest

from localora.lab.data.example import DataError, Example, Scorer
from localora.lab.data.load import load_task

SPEC = {"task": "by-heart", "difficulty": 2, "train_size": 300, "validation_size": 100, "test_size": 150}


def fact(example: Example) -> tuple[str, str]:
    match = re.fullmatch(r"The code of ([A-Za-z ]+) is", example.prompt)
    assert match
    return match[1], example.completion.strip()


def test_every_held_out_fact_was_trained_on_once():
    data = load_task(SPEC)
    assert data.scorer is Scorer.exact_match
    assert (len(data.train), len(data.validation), len(data.test)) == (300, 100, 150)
    trained = [fact(example) for example in data.train]
    assert len({who for who, _ in trained}) == 300, "a person with two numbers could not be learned"
    assert {len(number) for _, number in trained} == {4}
    for example in (*data.validation, *data.test):
        assert trained.count(fact(example)) == 1
        assert example.answer == example.completion.strip()


def test_validation_and_test_ask_for_other_facts():
    data = load_task(SPEC)
    assert not {fact(e) for e in data.validation} & {fact(e) for e in data.test}


def test_the_same_seed_gives_the_same_facts_and_another_seed_others():
    assert load_task(SPEC) == load_task(SPEC)
    other = load_task(SPEC | {"seed": 1})
    assert len({fact(e) for e in other.train} & {fact(e) for e in load_task(SPEC).train}) <= 2


def test_too_few_facts_are_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"300 facts.*ask for 301.*raise train_size"):
        load_task(SPEC | {"test_size": 201})
