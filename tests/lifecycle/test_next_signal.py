"""What a re-partition of clusters plans on, whole tensors: the update, the step against the gradient, or both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from localora import Repartitioner
from localora.lifecycle import planning
from method_table import BY_NAME
from tiny_models import MLP_TARGETS, Mlp, mlp_batch


def unit(M: Tensor) -> Tensor:
    return M / M.norm()


@pytest.mark.parametrize("signal", ["gradient", "delta", "both"])
def test_the_signal_is_the_update_and_the_step_against_the_gradient(
    signal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"target_modules": MLP_TARGETS, "repartition": [1.0], "repartition_signal": signal, "sketch": 64}
    model = get_peft_model(Mlp(), BY_NAME["cps-lora"].config(**options))
    batch = mlp_batch()
    layers = [model.base_model.model.first, model.base_model.model.second]
    updates = [layer.get_delta_weight("default").detach().double() for layer in layers]
    merged = Mlp().double()
    for name, dW in zip(MLP_TARGETS, updates, strict=True):
        merged.get_submodule(name).weight.data += dW
    merged(**{key: value.double() for key, value in batch.items()})["loss"].backward()
    gradients = [merged.get_submodule(name).weight.grad for name in MLP_TARGETS]

    seen: list[Tensor] = []
    original = planning.plan_coclusters

    def spy(left: Tensor, right: Tensor, **arguments: Any) -> Any:
        seen.append(left @ right)
        return original(left, right, **arguments)

    monkeypatch.setattr(planning, "plan_coclusters", spy)
    Repartitioner(model, None, 1, [batch]).step()
    for planned, G, dW in zip(seen, gradients, updates, strict=True):
        expected = {"gradient": -unit(G), "delta": unit(dW), "both": unit(dW) - unit(G)}[signal]
        torch.testing.assert_close(planned, expected, rtol=1e-3, atol=1e-5)
