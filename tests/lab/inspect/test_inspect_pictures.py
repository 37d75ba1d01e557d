"""What the pictures are drawn from: pooled matrices, their order, and where a layer stands in the heat map."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from planted import clustered

from localora.lab.inspect import thumbnails
from localora.lab.inspect.layer import LayerInspection, inspect_layer
from localora.lab.inspect.matrix import Dense
from localora.lab.inspect.pictures import adapter_name, layer_places
from localora.lab.inspect.thumbnails import draw_thumbnails, pooled
from localora.placement.partition import Partition


def test_pooling_is_the_root_mean_square_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "PIXELS", 4)
    M = torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    tiles = [
        [np.sqrt((M.numpy()[np.ix_(r, c)] ** 2).mean()) for c in ([0, 1], [1, 2, 3], [3, 4, 5], [5, 6])]
        for r in ([0, 1, 2], [2, 3, 4], [5, 6, 7], [7, 8, 9])
    ]
    np.testing.assert_allclose(pooled(M).numpy(), tiles, rtol=1e-5)


def test_sorting_brings_clusters_together() -> None:
    M, rows, cols = clustered(24, 36, 3, 2)
    small = draw_thumbnails(M, Partition.from_labels(rows, cols, 3))
    assert small.row_edges == (8, 16, 24)
    assert small.col_edges == (12, 24, 36)
    blocks = torch.block_diag(*[torch.ones(8, 12)] * 3)
    assert torch.equal(small.reordered > 0, blocks > 0)
    assert not torch.equal(small.original > 0, blocks > 0)


@pytest.fixture(scope="module")
def layer() -> LayerInspection:
    M = torch.randn(12, 14, generator=torch.Generator().manual_seed(0))
    return inspect_layer("x", Dense(M), rank=2, clusters=(2,), draws=2, seed=0)


def test_places_in_the_heat_map(layer: LayerInspection) -> None:
    def places(*names: str) -> list[tuple[int, str]]:
        return layer_places([dataclasses.replace(layer, name=name) for name in names])

    assert places("model.layers.3.self_attn.q_proj", "model.layers.11.mlp.experts.2.up", "score") == [
        (3, "self_attn.q_proj"),
        (11, "mlp.experts.2.up"),
        (-1, "score"),
    ]
    assert places("encoder.layer.0.q", "decoder.layer.0.q") == [(0, "encoder.layer.q"), (0, "decoder.layer.q")]


def test_names_of_adapters() -> None:
    assert adapter_name("g_lora") == "G-LoRA"
    assert adapter_name("cps_k4_free") == "CPS-LoRA, K = 4, free"
    assert adapter_name("grid_k2") == "2 x 2 grid"
    assert adapter_name("contiguous_k8") == "contiguous, K = 8"
