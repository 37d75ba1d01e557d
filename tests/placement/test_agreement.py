import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from localora.placement.agreement import adjusted_rand_index
from localora.placement.partition import PlacementError


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), min_size=1, max_size=60))
def test_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    a, b = (list(labels) for labels in zip(*pairs, strict=True))
    ours = adjusted_rand_index(torch.tensor(a), torch.tensor(b, dtype=torch.int8))
    assert ours == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)


def test_hand_computed_value() -> None:
    # table [[2, 1], [0, 3]]: together 1 + 3 = 4; in a 3 + 3, in b 1 + 6, of 15 pairs; chance 6 * 7 / 15 = 2.8
    a, b = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 1])
    assert adjusted_rand_index(a, b) == pytest.approx((4 - 2.8) / (6.5 - 2.8))


def test_numbering_does_not_matter() -> None:
    a = torch.tensor([0, 0, 1, 1, 2, 2, -1])
    assert adjusted_rand_index(a, torch.tensor([5, 5, 0, 0, 3, 3, 1])) == 1.0


@pytest.mark.parametrize("a", [[0], [], [4, 4, 4], [0, 1, 2]])
def test_labellings_without_choice_agree(a: list[int]) -> None:
    labels = torch.tensor(a, dtype=torch.int64)
    assert adjusted_rand_index(labels, labels) == 1.0


def test_large_counts_do_not_overflow() -> None:
    a = torch.arange(200_000) % 2
    assert adjusted_rand_index(a, a) == 1.0
    assert adjusted_rand_index(a, torch.arange(200_000) // 100_000) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.tensor([0, 1]), torch.tensor([0]), "one length, got 2 and 1"),
        (torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), "vectors of integers"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.tensor([0, 1]), "vectors of integers"),
    ],
)
def test_bad_labels(a: torch.Tensor, b: torch.Tensor, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        adjusted_rand_index(a, b)
