from __future__ import annotations

import pytest

from localora.lab.data.example import DataError, Example
from localora.lab.data.split import OverlapError, check_disjoint, normalise, prompt_hash, split_off, subset


def examples(*prompts: str) -> list[Example]:
    return [Example(f"id{i}", prompt, "x") for i, prompt in enumerate(prompts)]


def test_case_spacing_and_punctuation_do_not_matter():
    assert normalise("  What's  IT, then?\n") == normalise("what s it then")


@pytest.mark.parametrize(("one", "other"), [("5 - 3", "5 + 3"), ("1.5", "15"), ("a < b", "a > b")])
def test_what_makes_another_problem_is_kept(one, other):
    assert normalise(one) != normalise(other)


def test_choices_are_part_of_the_problem_in_any_order():
    def hash_of(*choices: str) -> str:
        return prompt_hash(Example("", "Which?", "x", choices=choices))

    assert hash_of("a", "b") == hash_of("b", "a")
    assert hash_of("a", "b") != hash_of("a", "c")


def test_overlap_lists_up_to_five_ids():
    held_out = examples(*[f"Question {i}." for i in range(9)])
    check_disjoint(examples("something else"), held_out)
    with pytest.raises(OverlapError, match=r"^1 held-out .*\(id3\)"):
        check_disjoint(examples("question 3"), held_out)
    with pytest.raises(OverlapError, match=r"^7 held-out .*\(id0, id1, id2, id3, id4, \.\.\.\)"):
        check_disjoint(examples(*[f"question {i}" for i in range(7)]), held_out)


def test_split_off_has_the_size_and_shares_no_prompt():
    everything = examples(*[f"q{i}" for i in range(100)])
    rest, held = split_off(everything, 30, 0, "test")
    assert len(held) == 30
    assert sorted(e.id for e in rest + held) == sorted(e.id for e in everything)
    assert len(split_off(everything, None, 0, "test")[1]) == 10


def test_the_split_depends_on_seed_and_texts_not_on_order():
    everything = examples(*[f"q{i}" for i in range(50)])

    def held_ids(data: list[Example], seed: int) -> set[str]:
        return {e.id for e in split_off(data, 10, seed, "test")[1]}

    assert held_ids(everything, 0) == held_ids(everything[::-1], 0)
    assert held_ids(everything, 0) != held_ids(everything, 1)


def test_equal_prompts_stay_on_one_side():
    doubled = examples(*[f"q{i // 2}" for i in range(40)])
    rest, held = split_off(doubled, 7, 0, "test")
    assert len(held) == 8
    check_disjoint(rest, held)


def test_a_split_that_leaves_nothing_is_refused():
    with pytest.raises(
        DataError, match=r"cannot split 3 test example\(s\) off 3 with 3 different prompts.*smaller test_size"
    ):
        split_off(examples("a", "b", "c"), 3, 0, "test")


def test_subset_keeps_the_order():
    everything = examples(*[f"q{i}" for i in range(50)])
    some = subset(everything, 20, 0)
    assert len(some) == 20
    numbers = [int(e.id[2:]) for e in some]
    assert numbers == sorted(numbers)
    assert subset(everything, None, 0) == everything
    assert subset(everything, 20, 1) != some
