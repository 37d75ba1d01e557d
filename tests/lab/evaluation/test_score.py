from __future__ import annotations

import re
from dataclasses import replace

import pytest

from localora.lab.data.example import DataError, Example, Scorer
from localora.lab.evaluation import score
from localora.lab.evaluation.sandbox import Sample, Verdict
from localora.lab.evaluation.score import evaluate_task

SETTINGS = {"batch_size": 4, "max_new_tokens": 6}


def test_exact_match_counts_items_in_order(model, tokenizer, monkeypatch):
    written = {"a": " 5\n#### 5", "b": " it is 6", "c": "#### 8"}
    monkeypatch.setattr(score, "generate", lambda *args, **_: [written[e.prompt] for e in args[2]])
    examples = [Example(p, p, "", answer=a) for p, a in (("a", "5"), ("b", "6.0"), ("c", "9"))]
    result = evaluate_task(model, tokenizer, examples, Scorer.exact_match, **SETTINGS)
    assert result.items == [True, True, False]
    assert (result.name, result.value) == ("exact match", 2 / 3)


def test_generation_ends_with_the_marked_line(model, tokenizer, monkeypatch):
    """The pattern given to generate waits for the end of the line: "#### 1" may go on as "#### 12"."""
    seen = []
    monkeypatch.setattr(score, "generate", lambda *args, **kwargs: seen.append(kwargs) or ["1"])
    evaluate_task(model, tokenizer, [Example("", "a", "b", answer="1")], Scorer.exact_match, **SETTINGS)
    pattern = re.compile(seen[0]["stop_pattern"])
    assert not any(map(pattern.search, ("5\n", "####\n", "#### 1", "#### \n")))
    assert pattern.search("so\n#### 12\n")


def test_multiple_choice_with_a_real_model(model, tokenizer):
    choices = (" abc", " xyz", " 12")
    examples = [Example(p, p, "", choices=choices, answer_index=0) for p in ("one", "two?", "three!")]
    chosen = score.choose(model, tokenizer, examples, 4)
    planted = [replace(examples[0], answer_index=chosen[0]), replace(examples[1], answer_index=chosen[1])]
    planted.append(replace(examples[2], answer_index=(chosen[2] + 1) % 3))
    result = evaluate_task(model, tokenizer, planted, Scorer.multiple_choice, **SETTINGS)
    assert result.items == [True, True, False]
    assert result.name == "multiple choice accuracy"


def test_code_runs_in_the_sandbox_it_is_given(model, tokenizer, monkeypatch):
    """The sandbox gets prompt and answer, without what the model went on to write, and its verdict is the score."""
    seen = []

    class Box:
        def run_all(self, samples):
            seen.extend(samples)
            return [Verdict("n + 1" in sample.program, "said so") for sample in samples]

    prompt = 'import math\n\ndef f(n):\n    """Doc."""'
    texts = ["\n    return n + 1\nprint(f(1))", "\n    return n\n\ndef g(): ..."]
    monkeypatch.setattr(score, "generate", lambda *_, **__: texts)
    examples = [Example(str(i), prompt, "\n    return n", tests="assert f(1) == 2") for i in range(2)]
    result = evaluate_task(model, tokenizer, examples, Scorer.code, sandbox=Box(), **SETTINGS)
    assert seen == [
        Sample(f"{prompt}\n    return n{end}", "assert f(1) == 2", ("f",), setup="import math")
        for end in (" + 1", "\n")
    ]
    assert (result.name, result.items) == ("pass@1", [True, False])
    assert result.outputs[1].endswith("# said so")


def test_a_reference_that_is_no_python_is_refused_before_generation(model, tokenizer):
    with pytest.raises(DataError, match=r"'e3': its reference solution or its tests are no Python"):
        evaluate_task(
            model, tokenizer, [Example("e3", "def f(", "", tests="f()")], Scorer.code, sandbox=object(), **SETTINGS
        )


def test_code_without_a_sandbox_is_refused(model, tokenizer):
    with pytest.raises(DataError, match="--allow-code-execution"):
        evaluate_task(model, tokenizer, [Example("", "a", "b", tests="c")], Scorer.code, **SETTINGS)


def test_the_first_answer_word_counts(model, tokenizer, monkeypatch):
    words = ("ending1", "ending2", "ending3")
    texts = [" it is Ending2, not ending1", "ending12 or ending1", "none"]
    seen = []
    monkeypatch.setattr(score, "generate", lambda *_, **kwargs: seen.append(kwargs["stop_pattern"]) or texts)
    examples = [Example(str(i), "p", "c", choices=words, answer_index=right) for i, right in enumerate((1, 0, 2))]
    result = evaluate_task(model, tokenizer, examples, Scorer.answer_word, **SETTINGS)
    assert result.items == [True, True, False]
    assert re.search(seen[0], "well, ending3")
    assert not re.search(seen[0], "ending4, endings")


@pytest.mark.parametrize(
    ("examples", "scorer", "message"),
    [
        ([], Scorer.exact_match, "no examples"),
        ([Example("a", "p", "c")], Scorer.none, "no scorer"),
        ([Example("e7", "p", "c")], Scorer.exact_match, "'e7' has no answer"),
        ([Example("e8", "p", "c", choices=("a", "b"))], Scorer.multiple_choice, "'e8' has no choices"),
        ([Example("e9", "p", "c", choices=("a", "b"))], Scorer.answer_word, "'e9' has no choices"),
    ],
)
def test_what_cannot_be_scored(model, tokenizer, examples, scorer, message):
    with pytest.raises(DataError, match=message):
        evaluate_task(model, tokenizer, examples, scorer, **SETTINGS)
