"""What an event that finds clusters plans on, as whole tensors."""

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


def test_an_event_plans_on_the_gradient_at_what_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"target_modules": MLP_TARGETS, "repartition": [1.0], "sketch": 64}
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
    for planned, G in zip(seen, gradients, strict=True):
        torch.testing.assert_close(planned, G, rtol=1e-3, atol=1e-6)
