from __future__ import annotations

import pytest

from localora.lab.evaluation.answers import final_answer, final_letter, first_word, matches, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 5 + 7 = 12\n#### 12", "12"),
        ("#### 3\nQuestion: and now 8?\n#### 4\n", "4"),
        ("#### 1,234 apples in 2 boxes", "1,234"),
        ("so $1,200.50.", "$1,200.50"),
        ("5 - 7 = -2", "-2"),
        ("#### C", "C"),
        ("#### -7.", "-7"),
        ("none at all", None),
        ("####", None),
        ("#### \n5 is left", "5"),
        ("That makes $1,234.50.", "$1,234.50"),
        ("####5", "5"),
        ("#### **5** dollars", "5"),
        ("#### 5\nThen 6 more.", "5"),
        ("#### $-7", "-7"),
        ("-$7 in all", "-$7"),
        ("so x = 10-5", "5"),
        ("half of 48 is 48/2=24", "24"),
        ("the share is 3/4.", "3/4"),
        ("#### 3/4 of it", "3/4"),
        ("5/0", "0"),
        ("it weighs .5 kg", ".5"),
        ("it weighs 0.5 kg", "0.5"),
        ("10%", "10"),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("1,200", "1200", True),
        ("$1200.00", "1200", True),
        ("12.", "12", True),
        ("50%", "50", True),
        ("c", "C", True),
        ("-2", "2", False),
        ("1.5", "15", False),
        ("10000000000000001", "10000000000000000", False),
        ("$1,234.50", "1234.5", True),
        ("3/4", "0.75", True),
        ("3/4", "4", False),
        ("-1/2", "-.5", True),
        ("1/3", "0.33", False),
        ("1/0", "1", False),
        (None, "0", False),
    ],
)
def test_same_answer(found, expected, same):
    assert same_answer(found, expected) is same


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("so 5 * 4\n#### C", "C"),
        ("#### C) 12", "C"),
        ("#### the answer is B, as A is not", "B"),
        ("Answer: D", "D"),
        ("A car drives. It is (E).", "E"),
        ("#### 12", None),
        ("BAD", None),
    ],
)
def test_final_letter(text, letter):
    assert final_letter(text) == letter


def test_the_kind_of_answer_expected_says_how_to_read():
    assert matches("#### C) 12", "C")
    assert not matches("#### C) 12", "D")
    assert matches("#### 12", "12")
    assert not matches("#### 12", "C")


@pytest.mark.parametrize(
    ("text", "index"), [("false, or true?", 0), ("TRUE", 1), ("untrue", None), ("truely false", 0), ("", None)]
)
def test_first_word(text, index):
    assert first_word(text, ("false", "true")) == index
