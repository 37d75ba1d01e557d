"""What an event leaves in the model goes through checkpoints, whole states, other adapters and merging unharmed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from adapted_models import adapted, logits
from localora import Repartitioner, ScheduleError, adapter_size, hold_factors
from method_table import BY_NAME
from tiny_models import tiny_llama, token_batch

CPS_LORA = BY_NAME["cps-lora"]
MODES = pytest.mark.parametrize("frozen", ["factors", "merged"])


def before_event(frozen: str = "factors") -> PeftModel:
    return adapted(CPS_LORA, repartition=[1.0], frozen=frozen)


def after_event(model: PeftModel) -> Tensor:
    """The logits after an event, and some training after it."""
    Repartitioner(model, None, 1, [token_batch(0)]).step()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "localized_local_B.default" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)), alpha=0.02)
    return logits(model.eval())


def same(model: nn.Module, expected: Tensor) -> None:
    """The logits within rounding, where the adapter's own effect is a thousand times that."""
    assert (logits(model.eval()) - expected).norm() < 1e-6 * expected.norm()
    assert (expected - logits(tiny_llama().eval())).norm() > 1e-3 * expected.norm()


@MODES
def test_checkpoints_of_an_adapter_that_was_loaded(frozen: str, tmp_path: Path) -> None:
    before_event(frozen).save_pretrained(tmp_path / "stage")
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "stage", is_trainable=True)
    start = logits(model)
    model.save_pretrained(tmp_path / "before")
    expected = after_event(model)
    model.save_pretrained(tmp_path / "after")
    resumed = PeftModel.from_pretrained(tiny_llama(), tmp_path / "stage", is_trainable=True)
    resumed.load_adapter(tmp_path / "after", "default", is_trainable=True)  # as a Trainer resumes
    same(resumed, expected)
    assert adapter_size(resumed) == adapter_size(model)
    model.load_adapter(tmp_path / "before", "default", is_trainable=True)  # as it goes back to its best checkpoint
    same(model, start)


@MODES
def test_the_state_of_a_whole_model(frozen: str, tmp_path: Path) -> None:
    model = before_event(frozen)
    untouched = {key: value.clone() for key, value in model.state_dict().items()}
    start, expected = logits(model), after_event(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    same(loaded, expected)
    for other in (before_event(frozen), loaded, model):  # made as before; with its frozen term beside; the very one
        other.load_state_dict(state)
        same(other, expected)
        assert adapter_size(other).rank == adapter_size(model).rank == 24
        other.save_pretrained(tmp_path / "again")
        same(PeftModel.from_pretrained(tiny_llama(), tmp_path / "again"), expected)
    with model.disable_adapter():
        assert (logits(model) - logits(tiny_llama().eval())).norm() < 1e-6 * expected.norm()
    model.load_state_dict(untouched)
    same(model, start)
    assert adapter_size(model).rank == 12


def test_a_copy_that_shares_the_config_has_no_part_in_the_other_s_events(tmp_path: Path) -> None:
    model = before_event()
    start = logits(model)
    model.add_adapter("ref", model.peft_config["default"])  # as TRL makes its reference
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ref." in name:
                parameter.copy_(model.get_parameter(name.replace(".ref.", ".default.")))
    after_event(model)
    model.save_pretrained(tmp_path)
    same(PeftModel.from_pretrained(tiny_llama(), tmp_path / "ref"), start)


def test_kept_factors_follow_what_moves_in_and_out_of_the_base_weight() -> None:
    model = before_event("merged")
    expected = after_event(model)
    with hold_factors(model):
        for _ in range(3):
            same(model, expected)
        with model.disable_adapter():
            logits(model)
        for _ in range(3):
            same(model, expected)


@pytest.mark.parametrize("what", ["reference", "merge"])
def test_inference_mode_leaves_a_model_that_trains(what: str) -> None:
    model = before_event("merged")
    after_event(model)
    with torch.inference_mode():
        if what == "merge":
            model.merge_adapter()
            model.unmerge_adapter()
        else:
            with model.disable_adapter():
                logits(model)
    model.train()(**token_batch(0)).loss.backward()
    grads = [parameter.grad for name, parameter in model.named_parameters() if "localized_local_A" in name]
    assert all(grad is not None and grad.any() for grad in grads)


def test_no_event_while_the_adapter_is_merged() -> None:
    model = before_event("merged")
    model.merge_adapter()
    repartitioner = Repartitioner(model, None, 1, [token_batch(0)])
    with pytest.raises(ScheduleError, match=r"'default' is merged into .*; call unmerge_adapter\(\) first"):
        repartitioner.step()
