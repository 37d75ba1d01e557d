"""Thin algebra equals that of the dense product."""

from __future__ import annotations

import pytest
import torch

from localora.placement.thin import relative_difference, split_svd, thin_norm, thin_svd, truncate_factors

G = torch.Generator().manual_seed(0)
A, B = torch.randn(5, 9, generator=G, dtype=torch.float64), torch.randn(7, 5, generator=G, dtype=torch.float64)
M = B @ A


def test_svd_and_norms_are_those_of_the_product() -> None:
    U, S, Vh = thin_svd(A, B)
    torch.testing.assert_close(S, torch.linalg.svdvals(M)[:5])
    torch.testing.assert_close(U * S @ Vh, M)
    assert thin_norm(A, B) == pytest.approx(float(M.norm()))


def test_factors_share_the_singular_values_evenly() -> None:
    U, S, Vh = thin_svd(A, B)
    left, right = split_svd(U, S, Vh, 3)
    torch.testing.assert_close(left @ left.T, S[:3].diag())
    torch.testing.assert_close(right.T @ right, S[:3].diag())


def test_truncation_is_the_nearest_and_says_by_how_much() -> None:
    A_2, B_2, error = truncate_factors(A, B, 2)
    assert error == pytest.approx(float((B_2 @ A_2 - M).norm() / M.norm()))
    assert error == pytest.approx(float(torch.linalg.svdvals(M)[2:].norm() / M.norm()))


def test_relative_difference() -> None:
    assert relative_difference(A, B, A, 1.25 * B) == pytest.approx(0.25)
    assert relative_difference(0 * A, B, A, B) == pytest.approx(float(M.norm()))
