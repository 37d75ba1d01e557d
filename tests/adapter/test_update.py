"""The update is linear in x, in A and in B, so each gradient is a slope that two forward passes tell exactly."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import nn

from method_table import Method, every_method

N, M = 24, 20


@every_method
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("frozen", [False, True])
def test_each_gradient_is_the_slope_of_the_forward_pass(method: Method, dropout: float, frozen: bool) -> None:
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(N, M)), method.config(target_modules=["0"], dropout=dropout))
    model = model.double().train()
    if frozen:
        model.base_model.model[0].set_frozen("default", torch.randn(3, N), torch.randn(M, 3))
    x = torch.randn(3, 7, N, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, 7, M, dtype=torch.float64)

    def forward() -> torch.Tensor:
        torch.manual_seed(2)  # of dropout: the same entries are dropped
        return model(x)

    y = forward()
    variables = [x, *(p for p in model.parameters() if p.requires_grad)]
    for variable, gradient in zip(variables, torch.autograd.grad(y, variables, g), strict=True):
        step = torch.randn_like(variable)
        with torch.no_grad():
            variable += step
            slope = ((forward() - y) * g).sum()
            variable -= step
        torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-8, atol=1e-8)
