"""A plain frozen base layer's gradient is added by the update itself; any other's is left to autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from localora.adapter.layer import LocalizedLinear
from localora.adapter.update import many_tokens
from method_table import BY_NAME, Method, every_method

N, M = 24, 20


def one_layer(method: Method, **options: object) -> tuple[PeftModel, LocalizedLinear]:
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(N, M)), method.config(target_modules=["0"], **options)).train()
    (layer,) = (module for module in model.modules() if isinstance(module, LocalizedLinear))
    return model, layer


def gradients(model: nn.Module, layer: LocalizedLinear, batch: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    x = torch.randn(batch, 7, N, requires_grad=True)
    torch.manual_seed(2)  # of dropout
    y = model(x)
    trained = [p for p in layer.parameters() if p.requires_grad]
    return [y, *torch.autograd.grad(y, [x, *trained], torch.randn(batch, 7, M))]


def nothing(layer: LocalizedLinear) -> None:
    pass


def a_hook(layer: LocalizedLinear) -> None:
    layer.base_layer.register_forward_hook(lambda *_: None)


def a_backward_hook(layer: LocalizedLinear) -> None:
    layer.base_layer.register_full_backward_hook(lambda *_: None)


def another_forward(layer: LocalizedLinear) -> None:
    layer.base_layer.forward = layer.base_layer.forward  # as accelerate's offloading does


def a_trained_bias(layer: LocalizedLinear) -> None:
    assert isinstance(layer.base_layer.bias, nn.Parameter)
    layer.base_layer.bias.requires_grad_(True)


def a_trained_weight(layer: LocalizedLinear) -> None:
    assert isinstance(layer.base_layer.weight, nn.Parameter)
    layer.base_layer.weight.requires_grad_(True)


@every_method
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    "change", [nothing, a_hook, a_backward_hook, another_forward, a_trained_bias, a_trained_weight]
)
def test_gradients_are_those_of_autograd(
    method: Method, dropout: float, change: Callable[[LocalizedLinear], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layer = one_layer(method, dropout=dropout)
    change(layer)
    x = torch.randn(2, N)
    assert (layer._plain_frozen_weight(x) is not None) == (change is nothing)
    ours = gradients(model, layer)
    monkeypatch.setattr(LocalizedLinear, "_plain_frozen_weight", lambda *_: None)
    for mine, autograds in zip(ours, gradients(model, layer), strict=True):
        torch.testing.assert_close(mine, autograds)


def test_hooks_of_the_base_layer_see_its_gradient() -> None:
    model, layer = one_layer(BY_NAME["cps-lora"])
    seen: list[Tensor] = []
    layer.base_layer.register_full_backward_hook(lambda _, __, outputs: seen.append(outputs[0]))
    model(torch.randn(2, N, requires_grad=True)).sum().backward()
    assert torch.equal(seen[0], torch.ones(2, M))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of the factors, whose inputs have none
def test_global_hooks_see_the_base_layer_too() -> None:
    model, layer = one_layer(BY_NAME["cps-lora"])
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_full_backward_hook(lambda module, *_: seen.append(module))
    try:
        model(torch.randn(2, N, requires_grad=True)).sum().backward()
    finally:
        handle.remove()
    assert layer.base_layer in seen


def test_of_several_adapters_one_adds_it() -> None:
    model, layer = one_layer(BY_NAME["g-lora"])
    model.add_adapter("other", BY_NAME["cps-lora"].config(target_modules=["0"]))
    model.base_model.set_adapter(["default", "other"])
    x = torch.randn(5, N, requires_grad=True)
    (dx,) = torch.autograd.grad(model(x), x, torch.ones(5, M))
    whole = layer.get_base_weight() + layer.get_delta_weight("default") + layer.get_delta_weight("other")
    torch.testing.assert_close(dx, torch.ones(5, M) @ whole)


def test_in_another_dtype_it_is_not_ours() -> None:
    _, layer = one_layer(BY_NAME["lora-by-share"])
    x = torch.randn(2, N)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer._plain_frozen_weight(x) is None
    assert layer._plain_frozen_weight(x.double()) is None


MANY_BATCH = 7  # of 7 tokens each: 49, and 4 mn / (m + n) is 43.6


def with_frozen_term(layer: LocalizedLinear, name: str = "default") -> None:
    torch.manual_seed(3)
    layer.set_frozen(name, torch.randn(5, N), torch.randn(M, 5))


@every_method
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("change", [nothing, a_hook])
def test_many_tokens_give_what_the_thin_products_give(
    method: Method, frozen: bool, change: Callable[[LocalizedLinear], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layer = one_layer(method)
    change(layer)
    if frozen:
        with_frozen_term(layer)
    sums: list[int] = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args: sums.append(len(args)) or addmm(*args))
    ours = gradients(model, layer, MANY_BATCH)
    assert len(sums) == (2 if change is nothing else 0), "W + B A is made in forward and in backward"
    monkeypatch.setattr("localora.adapter.layer.many_tokens", lambda *_: False)
    for mine, thin in zip(ours, gradients(model, layer, MANY_BATCH), strict=True):
        torch.testing.assert_close(mine, thin)


@pytest.mark.parametrize("frozen", [False, True])
def test_without_gradient_many_tokens_give_the_same(frozen: bool) -> None:
    model, layer = one_layer(BY_NAME["g-lora"])
    if frozen:
        with_frozen_term(layer)
    x = torch.randn(49, N)
    whole = layer.get_base_weight() + layer.get_delta_weight("default")
    seen: list[Tensor] = []
    with torch.inference_mode():
        torch.testing.assert_close(model(x), x @ whole.T + layer.get_base_layer().bias)
        layer.base_layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
        model(x)
    assert seen, "the base layer's hook saw its input"


def test_which_products_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(44, N)
    assert many_tokens(x, M, N)
    assert not many_tokens(x[:43], M, N), "4 mn / (m + n) is 43.6"
    assert not many_tokens(x.bfloat16(), M, N), "a small update would be rounded away"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert not many_tokens(x, M, N), "float32 products may round their factors to bfloat16 then"


def test_dropout_of_many_tokens_is_the_update_s_alone() -> None:
    model, layer = one_layer(BY_NAME["lora-by-share"], dropout=0.5)
    x = torch.ones(49, N)
    y = model(x) - layer.base_layer(x)
    assert y.std(dim=0).max() > 0, "each token was dropped out by itself"
