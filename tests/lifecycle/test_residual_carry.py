"""With residual carry the function does not jump at a move, and the frozen term goes wherever the adapter goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from moving import MOVING, first_layer, partition, swapped, trainable
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from localora import Repartitioner, export_lora, placement_of
from localora.adapter.model import adapted_layers
from localora.lifecycle import schedule
from localora.lifecycle.planning import Proposal
from method_table import BY_NAME
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=token_batch()["input_ids"]).logits


def deltas(model: nn.Module) -> dict[str, Tensor]:
    return {key: layer.get_delta_weight("default").detach().double() for key, layer in adapted_layers(model, "default")}


def propose_swaps(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Every event moves `count` rows and columns of every layer."""

    def propose(passes: object, layers: dict[str, nn.Module], *_: object) -> dict[str, Proposal]:
        return {key: Proposal(swapped(partition(layer), count, count), 0.1, 0.2) for key, layer in layers.items()}

    monkeypatch.setattr(schedule, "propose", propose)


def moved_model(method: str, monkeypatch: pytest.MonkeyPatch, events: int = 1) -> tuple[PeftModel, Repartitioner]:
    torch.manual_seed(1)
    config = BY_NAME[method].config(
        target_modules=LLAMA_TARGETS, carry_residual=True, repartition=[], repartition_every=1, settle=1.0
    )
    model = get_peft_model(tiny_llama(), config)
    propose_swaps(monkeypatch, 4)
    repartitioner = Repartitioner(model, None, events + 1, [token_batch()])
    return model, repartitioner


@pytest.mark.parametrize("method", MOVING)
def test_the_update_does_not_change_at_a_move(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, repartitioner = moved_model(method, monkeypatch, events=3)
    before, logits_before, labels_before = deltas(model), logits(model), placement_of(model)
    assert not any("carry" in name for name in model.state_dict())
    ranks = []
    for _ in range(3):
        event = repartitioner.step()
        assert event is not None
        assert event.delta_change == 0.0
        assert event.rows_moved == event.cols_moved == 8 * 4  # layers, rows
        assert abs(event.loss_after - event.loss_before) < 1e-5
        ranks.append(event.carry_rank)
        for key, delta in deltas(model).items():
            assert (delta - before[key]).norm() < 1e-6 * before[key].norm()
    assert placement_of(model) != labels_before
    assert 0 < ranks[0] <= ranks[1] <= 16  # four rows and columns were moved to and fro, so it cannot grow for ever
    torch.testing.assert_close(logits(model), logits_before, rtol=1e-4, atol=1e-4)
    carried = {p.data_ptr() for p in trainable(model)}
    assert not any(buffer.data_ptr() in carried for buffer in model.buffers())  # frozen: no parameter of any optimizer


def test_without_carry_the_same_move_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, repartitioner = moved_model("cps-lora", monkeypatch)
    repartitioner.config.carry_residual = False
    before = deltas(model)
    event = repartitioner.step()
    assert event is not None
    changes = [float((delta - before[key]).norm() / before[key].norm()) for key, delta in deltas(model).items()]
    assert event.delta_change == pytest.approx(max(changes), rel=1e-4)
    assert min(changes) > 0.05
    assert event.carry_rank == 0
    assert not any("carry" in name for name in model.state_dict())


def test_the_rank_is_that_of_what_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    model, repartitioner = moved_model("cps-lora", monkeypatch)
    before = deltas(model)
    event = repartitioner.step()
    assert event is not None
    needed = []
    for key, layer in adapted_layers(model, "default"):
        A, B = layer.localized_carry_A["default"], layer.localized_carry_B["default"]
        assert A.shape == (event.carry_rank, layer.in_features)
        assert B.shape == (layer.out_features, event.carry_rank)
        own = layer.get_delta_weight("default").detach().double() - (B.double() @ A.double())
        lost = torch.linalg.svdvals(before[key] - own)
        needed.append(int((lost > 1e-6 * lost[0]).sum()))
    assert event.carry_rank == max(needed)


def test_a_move_that_loses_nothing_carries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    config = BY_NAME["cps-lora"].config(
        target_modules=LLAMA_TARGETS, carry_residual=True, repartition=[], repartition_every=1, settle=1.0,
        init_weights=True,
    )  # fmt: skip
    model = get_peft_model(tiny_llama(), config)
    propose_swaps(monkeypatch, 4)
    event = Repartitioner(model, None, 2, [token_batch()]).step()
    assert event is not None
    assert event.rows_moved == 32
    assert event.carry_rank == 0
    assert not any("carry" in name for name in model.state_dict())


@pytest.mark.parametrize("method", MOVING)
def test_it_is_saved_and_loaded(method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, repartitioner = moved_model(method, monkeypatch)
    repartitioner.step()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert loaded.peft_config["default"].carry_rank == repartitioner.config.carry_rank > 0
    assert torch.equal(logits(loaded), logits(model))
    assert placement_of(loaded) == placement_of(model)


def test_it_is_loaded_into_a_model_that_has_not_moved_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So a Trainer resumes: the model is built from the run's own config, and then given the checkpoint's tensors."""
    model, repartitioner = moved_model("cps-lora", monkeypatch)
    fresh, _ = moved_model("cps-lora", monkeypatch)
    repartitioner.step()
    model.save_pretrained(tmp_path)
    fresh.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert fresh.peft_config["default"].carry_rank == repartitioner.config.carry_rank > 0
    assert torch.equal(logits(fresh), logits(model))


def test_it_is_merged_and_unmerged(monkeypatch: pytest.MonkeyPatch) -> None:
    model, repartitioner = moved_model("cps-lora", monkeypatch)
    repartitioner.step()
    expected = logits(model)
    layer = first_layer(model)
    base = layer.get_base_layer().weight.clone()
    model.merge_adapter()
    torch.testing.assert_close(layer.get_base_layer().weight - base, layer.get_delta_weight("default"))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("from_folder", [False, True])
def test_it_is_exported(from_folder: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, repartitioner = moved_model("cps-lora", monkeypatch)
    repartitioner.step()
    if from_folder:
        model.save_pretrained(tmp_path / "ours")
    report = export_lora(tmp_path / "ours" if from_folder else model, tmp_path / "lora")
    assert report.exact_rank == 3 * 4 + repartitioner.config.carry_rank
    plain = PeftModel.from_pretrained(tiny_llama(), tmp_path / "lora")
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)


def test_training_goes_on_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the factors is the one of dW, frozen term included."""
    model, repartitioner = moved_model("cps-lora", monkeypatch)
    repartitioner.step()
    frozen = {name: value.clone() for name, value in model.state_dict().items() if "carry" in name}
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(**token_batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert frozen
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in frozen.items())
