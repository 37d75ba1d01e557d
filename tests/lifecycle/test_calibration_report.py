"""What a calibration report says, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from localora import CalibrationReport, LayerReport, Partition


def layer(name: str, rows: list[int], cols: list[int], **shares: float) -> LayerReport:
    clusters = 1 + max(rows)
    return LayerReport(name, Partition.from_labels(torch.tensor(rows), torch.tensor(cols), clusters), **shares)


@pytest.fixture
def clusters() -> CalibrationReport:
    layers = (
        layer("a<b>", [0, 0, 1, 1], [0, 1], captured_energy=0.5, subspace_correlation=0.125),  # half of the entries
        layer("b", [0, 0, 0, 1], [0, 0, 0, 1], captured_energy=0.9, subspace_correlation=0.5),  # 10 of 16
        layer("c", [0, 1, 1, 1], [0, 0, 0, 1], captured_energy=0.25, subspace_correlation=0.0),  # 6 of 16
    )
    return CalibrationReport("cps-lora", layers, batches=8, loss=1.5, seconds=2.25)


def test_it_prints_five_lines(clusters: CalibrationReport) -> None:
    assert str(clusters).splitlines() == [
        "cps-lora: 3 layers placed from 8 batches in 2.2 s (loss 1.500)",
        "energy captured: median 50.0%, and 50.0% if it were spread evenly over the matrix",
        "range: 25.0% to 90.0%",
        "most:  b: 4 x 4, rows 3+1, columns 3+1, energy captured 90.0% (correlation 0.50)",
        "least: c: 4 x 4, rows 1+3, columns 3+1, energy captured 25.0% (correlation 0.00)",
    ]


def test_of_a_block_an_even_spread_leaves_its_share_of_the_entries_inside() -> None:
    block = layer("a", [0, -1, 0, -1], [-1, 0, -1, -1], importance_share=0.75)
    text = str(CalibrationReport("g-lora", (block,), batches=1, loss=1.0, seconds=0.0))
    assert "importance inside: median 75.0%, and 12.5% if it were spread evenly" in text


def test_the_table_has_every_layer(clusters: CalibrationReport) -> None:
    lines = clusters.table().splitlines()
    assert lines[0] == str(clusters).splitlines()[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["a<b>", "b", "c"]
    assert lines[1] == "  a<b>: 4 x 2, rows 2+2, columns 1+1, energy captured 50.0% (correlation 0.12)"


def test_a_notebook_shows_the_same(clusters: CalibrationReport) -> None:
    page = clusters._repr_html_()
    assert page.count("<tr>") == 1 + 3
    assert "range: 25.0% to 90.0%<br>" in page
    assert "<td>a&lt;b&gt;</td><td>4 x 2</td><td>2+2</td><td>1+1</td><td>50.0% (correlation 0.12)</td>" in page
