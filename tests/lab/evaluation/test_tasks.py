"""Published tasks measured: both protocols, the likelihood of the references, intervals, and code that stays off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

import published_files
from localora.lab.data.batches import token_ids
from localora.lab.data.example import DataError, Example
from localora.lab.evaluation import score, tasks
from localora.lab.evaluation.sandbox import Sample, Verdict
from localora.lab.evaluation.tasks import bootstrap_ratio, evaluate_tasks, load_tasks, wilson


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_files.write_tasks(tmp_path_factory.mktemp("data"))


def nats(model: Any, tokenizer: Any, prompt: str, completion: str) -> list[float]:
    """Of each token of the completion and of EOS, one forward pass a token, whole sequence anew."""
    ids = token_ids(prompt, tokenizer)
    model.eval()
    losses = []
    for token in [*token_ids(completion, tokenizer), tokenizer.eos_token_id]:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        losses.append(-float(logits.log_softmax(-1)[token]))
        ids.append(token)
    model.train()
    return losses


def write(monkeypatch: pytest.MonkeyPatch, texts: dict[str, str]) -> None:
    """The model writes `texts`, by the prompt's last words but one line."""

    def generate(*args: Any, **_: Any) -> list[str]:
        return [next(text for key, text in texts.items() if key in example.prompt) for example in args[2]]

    monkeypatch.setattr(score, "generate", generate)


def test_references_are_measured_by_their_likelihood(model, tokenizer, folder):
    loaded = load_tasks(["boolq", "gsm8k"], folder)
    results = evaluate_tasks(model, tokenizer, loaded, batch_size=2, max_new_tokens=2)
    for task, result in zip(loaded, results, strict=True):
        expected = [nats(model, tokenizer, e.prompt, e.completion) for e in task.examples]
        assert [item.reference_tokens for item in result.items] == [len(losses) for losses in expected]
        assert [item.reference_nats for item in result.items] == pytest.approx([sum(x) for x in expected], rel=1e-6)
        tokens = [loss for losses in expected for loss in losses]
        assert result.reference_loss == pytest.approx(sum(tokens) / len(tokens), rel=1e-6)
        sums, counts = [sum(x) for x in expected], [len(x) for x in expected]
        assert result.reference_interval == pytest.approx(bootstrap_ratio(sums, counts), rel=1e-6)
    assert model.training


def test_likelihood_protocol(model, tokenizer, folder):
    (result,) = evaluate_tasks(model, tokenizer, load_tasks(["siqa"], folder), batch_size=4)
    examples = load_tasks(["siqa"], folder)[0].examples
    for item, example in zip(result.items, examples, strict=True):
        per_byte = [
            -sum(nats(model, tokenizer, example.prompt, choice)[:-1]) / len(choice.strip().encode())
            for choice in example.choices
        ]
        best = per_byte.index(max(per_byte))
        assert item.output == example.choices[best]
        assert item.right == (best == example.answer_index)
    assert (result.task, result.family, result.metric) == (
        "siqa:likelihood", "commonsense", "multiple choice accuracy",
    )  # fmt: skip


def test_llm_adapters_protocol_takes_the_first_answer_word(model, tokenizer, folder, monkeypatch):
    write(monkeypatch, {"Kim": "\nThe right one is Answer1. answer2", "Lee": " answer10, or answer3"})
    (result,) = evaluate_tasks(model, tokenizer, load_tasks(["siqa:llm-adapters"], folder))
    assert [item.right for item in result.items] == [True, False]
    assert (result.value, result.interval) == (0.5, wilson(1, 2))
    write(monkeypatch, {"ice": " it is true", "fire": "TRUE, not false", "cats": "neither"})
    (result,) = evaluate_tasks(model, tokenizer, load_tasks(["boolq:llm-adapters"], folder))
    assert result.right == [True, False, False]


def test_rationale_protocol_reads_the_final_number(model, tokenizer, folder, monkeypatch):
    write(monkeypatch, {"2 and 3": "6 + 1\n#### 5.0\n", "Half": "3/2", "debt": "#### -$1,234.\n", "1 + 1": "so (B)"})
    results = evaluate_tasks(model, tokenizer, load_tasks(["gsm8k", "aqua"], folder))
    assert [result.right for result in results] == [[True, True, True], [True]]
    write(monkeypatch, {"2 and 3": "5 or 6", "Half": "#### 1.05\n", "debt": "#### 1234\n", "1 + 1": "#### 2\n"})
    results = evaluate_tasks(model, tokenizer, load_tasks(["gsm8k", "aqua"], folder))
    assert [result.right for result in results] == [[False, False, False], [False]]
    assert results[0].interval == wilson(0, 3)


def test_code_is_off_unless_allowed(model, tokenizer, folder, monkeypatch):
    monkeypatch.setattr(tasks, "Sandbox", lambda: pytest.fail("no sandbox was asked for"))
    monkeypatch.setattr(score, "generate", lambda *_, **__: pytest.fail("nothing is to be generated"))
    results = evaluate_tasks(model, tokenizer, load_tasks(["code"], folder))
    for result in results:
        assert (result.value, result.interval, result.right, result.metric) == (None, None, [], "pass@1 (not run)")
        assert "--allow-code-execution" in str(result.note)
        assert result.reference_loss > 0
        assert result.protections == []


def test_code_that_is_allowed_goes_to_the_sandbox_with_its_tests(model, tokenizer, folder, monkeypatch):
    class Box:
        protections = ("a wall",)

        def run_all(self, samples: list[Sample]) -> list[Verdict]:
            return [Verdict("return a + b" in s.program and "check(add)" in s.tests, "x") for s in samples]

    monkeypatch.setattr(tasks, "Sandbox", Box)
    write(monkeypatch, {"The sum": "    return a + b\n", "double": "\nno"})
    results = evaluate_tasks(model, tokenizer, load_tasks(["code", "gsm8k"], folder)[:2], allow_code_execution=True)
    assert [result.value for result in results] == [1.0, 0.0]
    assert [result.note for result in results] == [None, None]
    assert results[0].protections == ("a wall",)


@pytest.mark.usefixtures("bubblewrap")
def test_code_is_run_and_its_protections_are_told(model, tokenizer, folder, monkeypatch):
    """As published, prompt, reference imports, setup code and all: the right answer is right, the other wrong."""
    write(monkeypatch, {"The sum": "    return a + b\n", "double": "\ndef double(x): return x + 2"})
    results = evaluate_tasks(model, tokenizer, load_tasks(["code"], folder), allow_code_execution=True)
    assert [result.value for result in results] == [1.0, 0.0]
    assert results[1].items[0].output.endswith("# AssertionError")
    assert results[0].protections[0].startswith("bubblewrap ")


def test_a_limit_draws_the_same_items_for_every_model(folder):
    (first,), (again,) = load_tasks(["arc_easy"], folder, 3), load_tasks(["arc_easy"], folder, 3)
    (other,) = load_tasks(["arc_easy"], folder, 3, seed=1)
    assert len(first.examples) == 3
    assert first.examples == again.examples != other.examples


def test_progress_names_what_is_measured(model, tokenizer, folder):
    seen: list[tuple[str, int, int]] = []
    evaluate_tasks(model, tokenizer, load_tasks(["siqa"], folder), batch_size=4, progress=lambda *now: seen.append(now))
    losses, answers = "siqa:likelihood, losses", "siqa:likelihood, answers"
    assert seen == [(0, 2, losses), (2, 2, losses), (0, 2, answers), (4, 6, answers), (6, 6, answers)]


def test_the_data_are_fingerprinted(model, tokenizer, folder, tmp_path):
    changed = [published_files.BOOLQ[0] | {"answer": 0}, *published_files.BOOLQ[1:]]
    published_files.write_rows(tmp_path / "boolq_test.jsonl", changed)
    (ours,), (other,) = (evaluate_tasks(model, tokenizer, load_tasks(["boolq"], f)) for f in (folder, tmp_path))
    assert ours.data_hash != other.data_hash


def test_nothing_to_measure(model, tokenizer, folder):
    (task,) = load_tasks(["boolq"], folder)
    empty: list[Example] = []
    with pytest.raises(DataError, match="no examples"):
        evaluate_tasks(model, tokenizer, [tasks.LoadedTask(task.name, empty, task.scorer)])


def test_bootstrap_of_a_ratio_is_scipys():
    """Both draw items, a sum with its count; each end has a spread of its own from 2000 draws."""
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 40, 80)
    sums = counts * rng.gamma(2.0, 0.6, 80)
    found = bootstrap_ratio(list(sums), list(counts))
    expected = bootstrap(
        (sums, counts), lambda s, c, axis: s.sum(axis) / c.sum(axis), paired=True, vectorized=True,
        n_resamples=20_000, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    width = expected.high - expected.low
    assert found == pytest.approx((expected.low, expected.high), abs=0.06 * width)
    plain = sums / counts
    assert abs(found[0] - np.quantile(plain, 0.025)) > width  # it is no quantile of the items
    assert found == bootstrap_ratio(list(sums), list(counts))  # seeded
    assert found != bootstrap_ratio(list(sums), list(counts), seed=1)


def test_one_item_has_no_width():
    assert bootstrap_ratio([6.0], [3]) == (2.0, 2.0)
