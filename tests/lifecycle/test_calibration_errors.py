"""calibrate names what is wrong with its input, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from adapted_models import unplaced
from localora import CalibrationError, calibrate
from localora.adapter.layer import LocalizedLinear
from localora.adapter.status import adapted_layers
from method_table import BY_NAME, METHODS, Method, every_placed_method
from tiny_models import MLP_TARGETS, Mlp, mlp_batch, tiny_llama, token_batch

G_LORA = BY_NAME["g-lora"]


def no_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "calibration got no batches: the data set is empty"),
        (
            [{**token_batch(), "labels": torch.full((3, 10), -100)}],
            {},
            "batch 1 has no label tokens: every label is -100",
        ),
        (
            [token_batch(), {**token_batch(), "labels": torch.full((3, 10), -100)}],
            {},
            "calibration batch 2 has no label tokens",
        ),
        ([{"input_ids": token_batch()["input_ids"]}], {}, "no scalar loss for a calibration batch; give it labels"),
        ([token_batch()], {"loss_fn": lambda m, b: m(**b).loss * float("nan")}, "loss of calibration batch 1 is nan"),
        ([token_batch()], {"loss_fn": lambda m, b: m(**b).loss / 0}, "loss of calibration batch 1 is inf"),
        ([token_batch()], {"loss_fn": no_loss}, "no gradient reached any adapted layer"),
        (
            [token_batch()],
            {"adapter_name": "x"},
            r"'x' is no localora adapter of this model; its adapters are \['default'\]",
        ),
    ],
)
@every_placed_method
def test_bad_input_is_named(method: Method, data: list[dict[str, Tensor]], options: dict, message: str) -> None:
    model = unplaced(method)
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(CalibrationError, match=message):
        calibrate(model, data, **options)
    assert all(layer.is_unplaced("default") for _, layer in adapted_layers(model, "default"))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(module.calibrating for module in model.modules() if isinstance(module, LocalizedLinear))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tiny_llama, "needs one active localora adapter, found none"),
        (lambda: get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])), "found none"),
        (lambda: unplaced(METHODS[0]), "no local term on any layer, so there is nothing to place"),
    ],
)
def test_models_without_anything_to_place(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate(make(), [token_batch()])


def test_layers_that_no_gradient_reaches_are_named_in_a_warning() -> None:
    class Routed(Mlp):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            self.second(x.new_zeros(1, 24))
            return {"loss": (self.first(x).mean(1, keepdim=True) - labels).square().mean()}

    model = unplaced(G_LORA, Routed(), target_modules=MLP_TARGETS)
    with pytest.warns(UserWarning, match="gradient is zero in 1 of 2 adapted layers, .*second among.*get a random one"):
        calibrate(model, [mlp_batch()])
