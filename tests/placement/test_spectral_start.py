"""The k-means of the spectral start; the start itself is tested by what the planner finds with and without it."""

import torch
from sklearn.metrics import adjusted_rand_score

from localora.placement.spectral_start import kmeans

F64 = torch.float64


def test_kmeans_separates_clouds_and_survives_equal_points() -> None:
    g = torch.Generator().manual_seed(0)
    truth = torch.arange(60) % 4
    points = 10 * torch.eye(4, dtype=F64)[truth] + torch.randn(60, 4, generator=g, dtype=F64)
    assert adjusted_rand_score(kmeans(points, 4, g), truth) == 1.0
    assert set(kmeans(torch.ones(5, 2, dtype=F64), 3, g).tolist()) <= {0, 1, 2}
