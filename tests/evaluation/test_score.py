from __future__ import annotations

from dataclasses import replace

import pytest

from localora.data.example import DataError, Example, Scorer
from localora.evaluation import score
from localora.evaluation.generate import generate
from localora.evaluation.score import evaluate_task, final_answer, same_answer

SETTINGS = {"batch_size": 4, "max_new_tokens": 6}


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
        (None, "0", False),
    ],
)
def test_same_answer(found, expected, same):
    assert same_answer(found, expected) is same


def test_exact_match_counts_items_in_order(model, tokenizer, monkeypatch):
    written = {"a": " 5\n#### 5", "b": " it is 6", "c": "#### 8"}
    monkeypatch.setattr(score, "generate", lambda *args, **_: [written[e.prompt] for e in args[2]])
    examples = [Example(p, p, "", answer=a) for p, a in (("a", "5"), ("b", "6.0"), ("c", "9"))]
    result = evaluate_task(model, tokenizer, examples, Scorer.exact_match, **SETTINGS)
    assert result.items == [True, True, False]
    assert (result.name, result.value, result.count) == ("exact match", 2 / 3, 3)


def test_generation_ends_with_the_marked_line(model, tokenizer, monkeypatch):
    """The pattern given to generate waits for the end of the line: "#### 1" may go on as "#### 12"."""
    seen = []
    monkeypatch.setattr(score, "generate", lambda *args, **kwargs: seen.append(kwargs) or ["1"])
    evaluate_task(model, tokenizer, [Example("", "a", "b", answer="1")], Scorer.exact_match, **SETTINGS)
    pattern = score.re.compile(seen[0]["stop_pattern"])
    assert not any(map(pattern.search, ("5\n", "####\n", "#### 1", "#### \n")))
    assert pattern.search("so\n#### 12\n")
    evaluate_task(model, tokenizer, [Example("", "a", "b")], Scorer.code, **SETTINGS)
    assert seen[1]["stop_pattern"] is None


def test_multiple_choice_with_a_real_model(model, tokenizer):
    choices = (" abc", " xyz", " 12")
    examples = [Example(p, p, "", choices=choices, answer_index=0) for p in ("one", "two?", "three!")]
    chosen = score.choose(model, tokenizer, examples, 4)
    planted = [replace(examples[0], answer_index=chosen[0]), replace(examples[1], answer_index=chosen[1])]
    planted.append(replace(examples[2], answer_index=(chosen[2] + 1) % 3))
    result = evaluate_task(model, tokenizer, planted, Scorer.multiple_choice, **SETTINGS)
    assert result.items == [True, True, False]
    assert result.name == "multiple choice accuracy"


def test_code_is_compared_as_text_and_says_so(model, tokenizer):
    examples = [Example(p, p, "?") for p in ("one", "two?")]
    texts = generate(model, tokenizer, examples, **SETTINGS)
    planted = [replace(examples[0], completion=f"\n  {texts[0]}  \n"), replace(examples[1], completion="else")]
    result = evaluate_task(model, tokenizer, planted, Scorer.code, **SETTINGS)
    assert result.items == [True, False]
    assert "not run" in result.name


@pytest.mark.parametrize(
    ("examples", "scorer", "message"),
    [
        ([], Scorer.exact_match, "no examples"),
        ([Example("a", "p", "c")], Scorer.none, "no scorer"),
        ([Example("e7", "p", "c")], Scorer.exact_match, "'e7' has no answer"),
        ([Example("e8", "p", "c", choices=("a", "b"))], Scorer.multiple_choice, "'e8' has no choices"),
    ],
)
def test_what_cannot_be_scored(model, tokenizer, examples, scorer, message):
    with pytest.raises(DataError, match=message):
        evaluate_task(model, tokenizer, examples, scorer, **SETTINGS)
