"""The real data files beside the repository, where they are: each loads, is told apart, and has its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from localora.lab.data.example import Scorer
from localora.lab.data.load import load_task
from localora.lab.data.rows import read_jsonl
from localora.lab.data.schemas import to_examples

FOLDER = Path(__file__).parents[3].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no data files at {FOLDER.name}/ beside the repository")

CHOICE, MATH, CODE, LOSS = Scorer.multiple_choice, Scorer.exact_match, Scorer.code, Scorer.none
FILES = {
    "code/code_instruct_train": (6380, LOSS),
    "code/humaneval_test": (82, CODE),
    "code/mbpp_prompt": (10, CODE),
    "code/mbpp_train": (353, CODE),
    "code/mbpp_validation": (89, CODE),
    "commonsense/arc_challenge_test": (586, CHOICE),
    "commonsense/arc_challenge_train": (1114, CHOICE),
    "commonsense/arc_easy_test": (1000, CHOICE),
    "commonsense/arc_easy_train": (2237, CHOICE),
    "commonsense/boolq_test": (1000, CHOICE),
    "commonsense/boolq_train": (3000, CHOICE),
    "commonsense/hellaswag_test": (1000, CHOICE),
    "commonsense/hellaswag_train": (3000, CHOICE),
    "commonsense/openbookqa_test": (250, CHOICE),
    "commonsense/openbookqa_train": (3000, CHOICE),
    "commonsense/piqa_test": (460, CHOICE),
    "commonsense/piqa_train": (918, CHOICE),
    "commonsense/siqa_test": (965, CHOICE),
    "commonsense/siqa_train": (3000, CHOICE),
    "math/addsub_test": (198, MATH),
    "math/aqua_test": (127, MATH),
    "math/gsm8k_test": (660, MATH),
    "math/gsm8k_train": (7473, MATH),
    "math/singleeq_test": (253, MATH),
}


def load(name: str):
    return to_examples(read_jsonl(FOLDER / f"{name}.jsonl"), name)


@pytest.mark.parametrize("name", FILES)
def test_file(name):
    count, scorer = FILES[name]
    examples, found = load(name)
    assert (len(examples), found) == (count, scorer)
    assert len({e.id for e in examples}) == count
    for example in examples:
        assert example.prompt.strip()
        assert example.completion.strip()
        if scorer is MATH:
            assert example.completion.replace(",", "").endswith(f"#### {example.answer}")
        if scorer is CHOICE:
            assert example.completion == example.choices[example.answer_index]


def test_every_file_is_in_the_table():
    assert {str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.glob("*/*.jsonl")} == set(FILES)


def test_code_runs_as_prompt_completion_tests(tmp_path):
    """The first ten of each set; all reference solutions are known to be harmless."""
    for name in ("code/humaneval_test", "code/mbpp_prompt"):
        for example in load(name)[0][:10]:
            exec(compile(f"{example.prompt}{example.completion}\n{example.tests}", example.id, "exec"), {})


def test_siqa_shows_its_context_and_aqua_its_options():
    siqa = {e.id: e for e in load("commonsense/siqa_test")[0]}["siqa-dev-1"]
    assert siqa.prompt.startswith("Question: Sydney walked past a homeless woman")
    assert siqa.prompt.endswith("How would you describe Sydney?\nAnswer:")
    aqua = load("math/aqua_test")[0][0]
    assert aqua.prompt.count("\n") == 6
    assert aqua.answer in "ABCDE"


def test_gsm8k_marks_are_gone():
    assert not any("<<" in e.completion for e in load("math/gsm8k_train")[0])


@pytest.mark.parametrize(
    ("train", "test"),
    [("math/gsm8k", "math/gsm8k"), ("commonsense/openbookqa", "commonsense/openbookqa"), ("math/gsm8k", "math/addsub")],
)
def test_published_pairs_are_disjoint(train, test):
    spec = {"path": str(FOLDER / f"{train}_train.jsonl"), "test_path": str(FOLDER / f"{test}_test.jsonl")}
    data = load_task({**spec, "train_size": 64, "validation_size": 32, "test_size": 16})
    assert (len(data.train), len(data.test)) == (64, 16)
    assert len(data.validation) >= 32
