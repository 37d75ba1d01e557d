"""The planted teachers are what they claim to be, and the quick grid shows what the full one does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.theory.__main__ import main
from benchmarks.theory.grid import FULL, cells, needed
from benchmarks.theory.students import STUDENTS, train
from benchmarks.theory.summary import interval
from benchmarks.theory.tables import fill_page
from benchmarks.theory.tasks import Batch, LinearTask, TransformerTask
from benchmarks.theory.teacher import DIRECTIONS, plant
from peft import get_peft_model

from localora import CpsLoraConfig
from localora.adapter.status import adapted_layers


@pytest.mark.parametrize("clusters", [2, 4, 8])
def test_without_overlap_the_update_is_its_blocks_and_clusters_need_k_times_less(clusters: int) -> None:
    planted = plant(64, 48, clusters, 0.0, seed=0)
    assert planted.delta.square().sum() == pytest.approx(1)
    assert (planted.delta * ~planted.partition.mask()).abs().max() < 1e-12
    assert planted.partition.row_sizes == (64 // clusters,) * clusters
    assert planted.partition.row_labels.tolist() != sorted(planted.partition.row_labels.tolist())  # shuffled
    for r in (1, 2, 4):
        assert planted.cluster_optimum(r) == pytest.approx(planted.lora_optimum(clusters * r))
        if clusters * r < 48:
            assert planted.cluster_optimum(r) < planted.lora_optimum(clusters * r - 1) - 1e-4


def test_the_dial_leaves_lora_alone_and_takes_the_blocks_away() -> None:
    plants = [plant(64, 48, 4, overlap, seed=0) for overlap in (0.0, 0.1, 0.5, 1.0)]
    spectra = [torch.linalg.svdvals(planted.delta) for planted in plants]
    for spectrum in spectra[1:]:
        torch.testing.assert_close(spectrum, spectra[0])
    inside = [float((planted.delta * planted.partition.mask()).square().sum()) for planted in plants]
    assert inside == sorted(inside, reverse=True)
    assert inside[-1] == pytest.approx(1 / 4, abs=0.05)  # what a quarter of the entries holds by chance


def test_the_optima_are_those_of_truncated_dense_matrices() -> None:
    planted = plant(48, 40, 4, 0.25, seed=1)
    U, S, Vh = torch.linalg.svd(planted.delta)
    assert planted.lora_optimum(3) == pytest.approx(planted.error((U[:, :3] * S[:3]) @ Vh[:3]))
    fitted = torch.zeros(48, 40, dtype=torch.float64)
    for k in range(4):
        rows, cols = ((labels == k).nonzero().flatten() for labels in
                      (planted.partition.row_labels, planted.partition.col_labels))  # fmt: skip
        U, S, Vh = torch.linalg.svd(planted.delta[rows][:, cols])
        fitted[rows[:, None], cols] = (U[:, :3] * S[:3]) @ Vh[:3]
    assert planted.cluster_optimum(3) == pytest.approx(planted.error(fitted))
    assert DIRECTIONS >= 10


def test_the_error_of_a_linear_student_is_the_loss_beyond_the_teachers() -> None:
    task = LinearTask(4, 0.0, seed=0)
    model = get_peft_model(task.base(), CpsLoraConfig(r=2, alpha=2.0, placement="random", init_weights=False,
                                                      target_modules=["linear"]))  # type: ignore[arg-type] # fmt: skip
    torch.manual_seed(0)
    x = torch.randn(20_000, task.n)
    with torch.no_grad():
        loss = float(model(x=x, labels=x @ task.taught.T)["loss"])
    assert task.error(model) == pytest.approx(2 * loss, rel=0.03)
    batches, again = task.batches(3), task.batches(3)
    assert torch.equal(next(batches)["x"], next(again)["x"])
    assert not torch.equal(next(batches)["x"], next(task.batches(3))["x"])


def test_the_error_of_a_transformer_student_is_1_untrained_and_0_for_the_teacher() -> None:
    task = TransformerTask(4, 0.0, seed=0)
    model = get_peft_model(task.base(), CpsLoraConfig(r=4, alpha=4.0, target_modules=task.targets))  # type: ignore[arg-type]
    layers = adapted_layers(model, "default")
    assert len(layers) == len(task.plants) == 14
    assert task.error(model) == pytest.approx(1)
    with torch.no_grad():
        for name, layer in layers:
            planted = next(p for key, p in task.plants.items() if name.endswith(key))
            assert task.planted(name) == planted.partition
            weight = layer.get_base_layer().weight
            weight += planted.delta.float() * weight.norm() * task.strength
    assert task.error(model) < 1e-8


@pytest.mark.parametrize(("student", "expected"), [("cps-update", (20, 20)), ("cps-update-counted", (10, 10))])
def test_a_lora_is_trained_beside_the_steps_or_within_them(student: str, expected: tuple[int, int]) -> None:
    drawn: dict[int, int] = {}

    class Counting(LinearTask):
        def batches(self, seed: int) -> Iterator[Batch]:
            for batch in super().batches(seed):
                drawn[seed] = drawn.get(seed, 0) + 1
                yield batch

    train(Counting(4, 0.0, seed=0), STUDENTS[student], r=4, seed=7, lr=0.01, steps=20)
    assert (drawn[8], drawn[7]) == expected
    assert student in {cell.student for cell in cells(FULL) if cell.task == "transformer"}
    assert student not in {cell.student for cell in cells(FULL) if cell.task == "linear"}


def test_the_rank_needed_lies_between_the_ranks_measured() -> None:
    assert needed(0.3, [1, 2, 4], [0.8, 0.5, 0.1]) == pytest.approx(3.0)
    assert needed(0.5, [1, 2, 4], [0.8, 0.5, 0.1]) == pytest.approx(2.0)
    assert needed(0.9, [1, 2, 4], [0.8, 0.5, 0.1]) is None
    assert needed(0.05, [1, 2, 4], [0.8, 0.5, 0.1]) is None


def test_intervals_are_students_over_seeds() -> None:
    # standard deviation 1, five values: 2.776 / sqrt(5)
    found = interval([10 + x for x in (-1.0, 1.0, -1.0, 1.0, 0.0)])
    assert found == {"mean": 10.0, "half": pytest.approx(1.2416, abs=1e-3)}


@pytest.mark.slow
def test_the_quick_grid_shows_the_theorem_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--quick", "--out", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = {(row["student"], row["r"]): row for row in summary["tables"]}
    # K = 4 blocks, r 4: a quarter of LoRA's parameters at equal error, found as well as given
    for row in summary["parameters_at_equal_error"]:
        assert row["ratio"]["mean"] == pytest.approx(4, abs=0.15)
    assert rows["cps-found", 4]["relative_to_oracle"]["mean"] < 1.05
    assert rows["cps-found", 4]["agreement"] > 0.95
    assert rows["lora", 16]["parameters"] == 4 * rows["cps-oracle", 4]["parameters"]
    assert rows["cps-oracle", 4]["error"]["mean"] < 1.02 * rows["cps-oracle", 4]["optimum"]
    assert rows["cps-random", 4]["error"]["mean"] > 1.3 * rows["lora", 4]["error"]["mean"]
    # no structure: with free sizes it is LoRA, with the default balance it pays
    none = {(row["student"], row["r"]): row for row in summary["dial"] if row["overlap"] == 1}
    assert none["cps-free", 4]["relative_to_lora"]["mean"] == pytest.approx(1, abs=0.01)
    assert none["cps-found", 4]["relative_to_lora"]["mean"] > 1.1
    assert {path.name for path in tmp_path.glob("*.png")} == {"parameters.png", "overlap.png"}

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- theory equal-error -->\nold\n<!-- end -->\nafter\n")
    fill_page(page, summary)
    assert "| linear | 4 | 4 | oracle | 4.0" in page.read_text()
    assert "old" not in page.read_text()

    runs = (tmp_path / "runs.jsonl").read_text()
    capsys.readouterr()
    main(["--quick", "--out", str(tmp_path)])
    assert (tmp_path / "runs.jsonl").read_text() == runs
    assert capsys.readouterr().err == ""  # nothing was trained
