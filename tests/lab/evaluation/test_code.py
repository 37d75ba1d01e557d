"""From a generated text to a sample, and the verdicts on all reference solutions beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from localora.lab.data.example import DataError, Example
from localora.lab.data.rows import read_jsonl
from localora.lab.data.schemas import to_examples
from localora.lab.evaluation.code import sample
from localora.lab.evaluation.sandbox import Limits, Sandbox

CODE = Path(__file__).parents[3].parent / "shared" / "data" / "code"
BODY = Example(
    "h/1",
    'import math\n\ndef helper(x):\n    return x\n\ndef area(r):\n    """Of a circle."""\n',
    "    from os import path\n    return math.pi * r * r\n",
    tests="def check(candidate):\n    assert helper(candidate(0)) == 0\ncheck(area)",
)
PROGRAM = Example(
    "m/1",
    '"""\nSorted pairs.\nassert f([Pair(1, 2)]) == 1\n"""',
    "\nimport heapq\nclass Pair:\n    pass\ndef f(x):\n    return 1\nunused = 2",
    tests="assert f([Pair(1, 2)]) == heapq.heappop([1])",
)
# Of what a right solution returns, something else that its tests must notice.
SPOIL = """

def _spoiled(right):
    def wrong(*args, **kwargs):
        value = right(*args, **kwargs)
        if isinstance(value, bool) or value is None:
            return "neither" if value is None else not value
        if isinstance(value, (int, float, complex)):
            return value + 1
        return "an answer that no test expects"
    return wrong
"""


def test_the_tests_have_helpers_and_imports_of_their_own():
    made = sample(BODY, "    return 3 * r * r\nprint(area(1))")
    assert made.program == BODY.prompt + "    return 3 * r * r"
    assert made.names == ("area",)
    assert made.setup == "import math\n\ndef helper(x):\n    return x"
    assert made.tests == BODY.tests


def test_of_a_whole_program_the_tests_have_what_they_name():
    made = sample(PROGRAM, "\ndef f(x): return 1\nassert f(0)")
    assert made.names == ("Pair", "f")
    assert made.setup.endswith("import heapq")
    assert "class" not in made.setup
    assert made.program == PROGRAM.prompt + "\ndef f(x): return 1"


def test_a_name_that_is_assigned_counts():
    assert sample(Example("m/2", '"""x"""', "\nf = lambda x: x", tests="assert f(1) == 1"), "").names == ("f",)


@pytest.mark.parametrize("broken", [{"completion": "    return ("}, {"tests": "assert f("}])
def test_no_python_is_an_error_with_the_example(broken):
    values = {"id": "e9", "prompt": 'def f():\n    """x"""\n', "completion": "    return 1\n", "tests": "f()"}
    with pytest.raises(DataError, match=r"example 'e9'.*no Python"):
        sample(Example(**(values | broken)), "")


@pytest.mark.slow
@pytest.mark.skipif(not CODE.is_dir(), reason="no data files at shared/ beside the repository")
@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize("name", ["humaneval_test", "mbpp_prompt", "mbpp_train", "mbpp_validation"])
def test_every_reference_solution_is_right_and_a_spoiled_one_is_wrong(name):
    examples, _ = to_examples(read_jsonl(CODE / f"{name}.jsonl"), name)
    sandbox = Sandbox(Limits(seconds=120))
    right = [sample(example, example.completion) for example in examples]
    verdicts = sandbox.run_all(right)
    assert [e.id for e, verdict in zip(examples, verdicts, strict=True) if not verdict.passed] == []
    wrong = [
        made._replace(program=made.program + SPOIL + "".join(f"{name} = _spoiled({name})\n" for name in made.names))
        for made in right
    ]
    verdicts = sandbox.run_all(wrong)
    assert [e.id for e, verdict in zip(examples, verdicts, strict=True) if verdict.passed] == []
