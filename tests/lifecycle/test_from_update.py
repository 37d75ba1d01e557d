"""Clusters from the update of a LoRA trained before: found where no gradient shows them, refused where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from localora import CalibrationError, CpsLoraConfig, GLoraConfig, calibrate, calibrate_from_update
from localora.adapter.status import adapted_layers
from localora.placement.captured import captured_energy
from tiny_models import tiny_llama

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Distillation(nn.Module):
    """A Llama of one block, and the distance of its logits to a teacher's: all layers with a planted update."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlamaConfig(
            vocab_size=64, num_key_value_heads=2, initializer_range=0.25, tie_word_embeddings=False, **shape
        )
        self.llama = LlamaForCausalLM(config).eval()

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.llama(input_ids=input_ids).logits - labels).square().mean()}


@torch.no_grad()
def plant(teacher: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Adds an update of two blocks of rank 3, on shuffled rows and columns, to each layer; gives their labels."""
    generator = torch.Generator().manual_seed(1)
    labels = {}
    for name, layer in teacher.named_modules():
        if name.rsplit(".", 1)[-1] not in TARGETS:
            continue
        m, n = layer.weight.shape
        rows, cols = (torch.randperm(size, generator=generator) % 2 for size in (m, n))
        factors = torch.randn(2, 3, m, generator=generator), torch.randn(2, 3, n, generator=generator)
        delta = sum((factors[0][k] * (rows == k)).T @ (factors[1][k] * (cols == k)) for k in range(2))
        layer.weight += 0.6 * layer.weight.norm() * delta / delta.norm()
        labels[name] = rows, cols
    return labels


def saved_lora(folder: Path, base: nn.Module, rank: int = 8, train: list[dict[str, Tensor]] | None = None) -> Path:
    """A LoRA on all TARGETS, trained on each batch once, or with random factors."""
    torch.manual_seed(3)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights=train is not None)
    model = get_peft_model(base, config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for batch in train or []:
        model(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(str(folder))
    return folder


def test_clusters_that_the_gradient_does_not_show_are_found(tmp_path: Path) -> None:
    student, teacher = Distillation(), Distillation()
    labels = plant(teacher)
    generator = torch.Generator().manual_seed(2)
    tokens = [torch.randint(64, (16, 12), generator=generator) for _ in range(400)]
    with torch.no_grad():
        data = [{"input_ids": ids, "labels": teacher.llama(input_ids=ids).logits} for ids in tokens]
    lora = saved_lora(tmp_path, Distillation(), rank=32, train=data)

    def agreement(*, from_update: bool) -> float:
        model = get_peft_model(student, CpsLoraConfig(r=3, clusters=2, target_modules=list(TARGETS)))
        report = calibrate_from_update(model, lora) if from_update else calibrate(model, data, steps=64)
        model.unload()
        indices = []
        for layer in report.layers:
            rows, cols = next(planted for name, planted in labels.items() if layer.name.endswith(name))
            indices.append(adjusted_rand_score(rows, layer.partition.row_labels))
            indices.append(adjusted_rand_score(cols, layer.partition.col_labels))
        return sum(indices) / len(indices)

    assert agreement(from_update=False) < 0.1
    assert agreement(from_update=True) > 0.7


@pytest.mark.parametrize("global_share", [0.0, 0.5], ids=["cps-lora", "hybrid"])
def test_the_report_states_what_is_captured_of_that_very_update(tmp_path: Path, global_share: float) -> None:
    base = tiny_llama()
    lora = get_peft_model(base, LoraConfig(r=8, lora_alpha=24, target_modules=list(TARGETS), init_lora_weights=False))
    updates = {name: module.get_delta_weight("default").detach() for name, module in lora.named_modules()
               if hasattr(module, "get_delta_weight")}  # fmt: skip
    lora.save_pretrained(str(tmp_path))
    config = CpsLoraConfig(r=4, clusters=2, global_share=global_share, target_modules=list(TARGETS))
    model = get_peft_model(tiny_llama(), config)
    report = calibrate_from_update(model, tmp_path)
    assert (report.batches, report.loss) == (0, None)
    assert "from an update" in str(report)
    for found in report.layers:
        delta = updates[found.name]
        rank = 4 if not global_share else 2
        expected = captured_energy(delta, torch.eye(delta.shape[1]), found.partition, rank)
        assert found.captured_energy == pytest.approx(expected, rel=1e-4)
        assert 0 < expected < 1
    placed = {name: layer.local_partition("default") for name, layer in adapted_layers(model, "default")}
    assert placed == {layer.name: layer.partition for layer in report.layers}


def test_what_cannot_place_it_is_refused(tmp_path: Path) -> None:
    untrained = saved_lora(tmp_path / "untrained", tiny_llama(), train=[])
    some = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    some.save_pretrained(str(tmp_path / "some"))
    other = saved_lora(tmp_path / "other", Distillation().llama)

    def unplaced() -> nn.Module:
        return get_peft_model(tiny_llama(), CpsLoraConfig(r=2, clusters=2, target_modules=["q_proj", "v_proj"]))

    with pytest.raises(CalibrationError, match="zero in every layer: that LoRA has not been trained"):
        calibrate_from_update(unplaced(), untrained)
    with pytest.raises(CalibrationError, match=r"no update for 2 of 4 adapted layers, .*v_proj among them"):
        calibrate_from_update(unplaced(), tmp_path / "some")
    with pytest.raises(CalibrationError, match=r"no update for \d of 4|another base model"):
        calibrate_from_update(unplaced(), other)
    g_lora = get_peft_model(tiny_llama(), GLoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(CalibrationError, match="g-lora adapter, whose block is chosen by Taylor scores"):
        calibrate_from_update(g_lora, untrained)
