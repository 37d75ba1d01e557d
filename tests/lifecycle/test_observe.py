"""Signals collected by hooks on whole models equal what real weight.grad tensors give.

The oracle lets the base weights require grad and reads W.grad after each backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from localora.lifecycle.observe import watch_gradients
from localora.placement.sketch import GradientSketch, gaussian
from localora.placement.taylor import TaylorScores
from tiny_models import GPT2_TARGETS, LLAMA_TARGETS, tiny_gpt2, tiny_llama, token_batch

WIDTH = 6
MODELS = {"llama": (tiny_llama, LLAMA_TARGETS), "gpt2": (tiny_gpt2, GPT2_TARGETS)}
Prepare = Callable[[nn.Module], None]


def _as_it_is(model: nn.Module) -> None:
    pass


def _checkpointing(reentrant: bool) -> Prepare:
    def prepare(model: nn.Module) -> None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.disable_input_require_grads()  # transformers' own help for frozen models; watching must not need it
        model.train()

    return prepare


def _targets(model: nn.Module, names: list[str]) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in names}


def _weight_mn(layer: nn.Module) -> Tensor:
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def _observed(kind: str, batches: list[dict[str, Tensor]], prepare: Prepare, **autocast: object) -> dict[str, tuple]:
    make, names = MODELS[kind]
    model = make().double() if not autocast else make()
    model.requires_grad_(False)
    prepare(model)
    layers = _targets(model, names)
    scores = {name: TaylorScores(*_weight_mn(layer).shape) for name, layer in layers.items()}
    sketches = {name: GradientSketch(*_weight_mn(layer).shape, WIDTH, seed=1) for name, layer in layers.items()}

    def observer(name: str, layer: nn.Module) -> Callable[[Tensor, Tensor], None]:
        def observe(x: Tensor, g: Tensor) -> None:
            assert not torch.is_grad_enabled()
            scores[name].observe(x, g, _weight_mn(layer))
            sketches[name].observe(x, g)

        return observe

    with watch_gradients(model, {layer: observer(name, layer) for name, layer in layers.items()}):
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(autocast)):
                loss = model(**batch).loss
            loss.backward()
    assert all(not p.requires_grad and p.grad is None for p in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())
    return {name: (scores[name], sketches[name]) for name in layers}


def _oracle(kind: str, batches: list[dict[str, Tensor]]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    make, names = MODELS[kind]
    model = make().double()
    layers = _targets(model, names)
    passes: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        for name, layer in layers.items():
            grad = layer.weight.grad.T if isinstance(layer, Conv1D) else layer.weight.grad
            passes[name].append((_weight_mn(layer).detach(), grad.clone()))
    return passes


def _compare(observed: dict[str, tuple], oracle: dict[str, list[tuple[Tensor, Tensor]]], **tolerance: float) -> None:
    assert observed.keys() == oracle.keys()
    for name, (scores, sketch) in observed.items():
        importance = sum((W * G).abs() for W, G in oracle[name])
        total = sum(G for _, G in oracle[name])
        assert scores.batches == sketch.batches == len(oracle[name])
        for ours, expected in (
            (scores.rows, importance.sum(1)),
            (scores.cols, importance.sum(0)),
            (scores.total, importance.sum()),
            (sketch.Y.double(), total @ gaussian(*sketch.omega)),
            (sketch.Z.double(), gaussian(*sketch.psi) @ total),
        ):
            if tolerance:
                assert (ours - expected).norm() <= tolerance["relative"] * expected.norm(), name
            else:
                torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "prepare",
    [_as_it_is, _checkpointing(reentrant=False), _checkpointing(reentrant=True)],
    ids=["plain", "checkpointing", "checkpointing-reentrant"],
)
def test_hooks_see_the_real_gradient(kind: str, prepare: Prepare) -> None:
    batches = [token_batch(0), token_batch(1, examples=2)]
    _compare(_observed(kind, batches, prepare), _oracle(kind, batches))


@pytest.mark.parametrize("kind", MODELS)
def test_bf16_autocast(kind: str) -> None:
    batches = [token_batch(0)]
    _compare(_observed(kind, batches, _as_it_is, bf16=True), _oracle(kind, batches), relative=0.05)


def _padded(batch: dict[str, Tensor], left: bool) -> dict[str, Tensor]:
    def pad(tensor: Tensor, value: int) -> Tensor:
        padding = tensor.new_full((tensor.shape[0], 5), value)
        return torch.cat([padding, tensor] if left else [tensor, padding], dim=1)

    padded = {"input_ids": pad(batch["input_ids"], 0), "attention_mask": pad(batch["attention_mask"], 0)}
    padded["labels"] = pad(batch["labels"], -100)
    if left:
        padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return padded


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_changes_nothing(left: bool) -> None:
    batch = token_batch(0)
    observed = _observed("llama", [_padded(batch, left)], _as_it_is)
    _compare(observed, _oracle("llama", [batch]))


def test_a_weight_used_twice_is_observed_twice() -> None:
    """Gradient accumulation within one backward pass: a shared layer contributes each use, and the sketch their sum."""
    layer = nn.Linear(20, 20, bias=False).double()
    x = torch.randn(4, 20, dtype=torch.float64)
    (grad,) = torch.autograd.grad(layer(torch.tanh(layer(x))).square().sum(), layer.weight)
    sketch = GradientSketch(20, 20, WIDTH, seed=0)
    with watch_gradients(layer, {layer: sketch.observe}):
        layer(torch.tanh(layer(x))).square().sum().backward()
    torch.testing.assert_close(sketch.Y.double(), grad @ gaussian(*sketch.omega))


def test_flags_and_hooks_come_back_after_an_error(llama: nn.Module) -> None:
    flags = {name: i % 2 == 0 for i, (name, _) in enumerate(llama.named_parameters())}
    for name, parameter in llama.named_parameters():
        parameter.requires_grad_(flags[name])
    layer = llama.model.layers[0].self_attn.q_proj
    with pytest.raises(KeyError), watch_gradients(llama, {layer: lambda x, g: None}):
        llama.state_dict()["no such key"]
    assert {name: p.requires_grad for name, p in llama.named_parameters()} == flags
    assert not layer._forward_hooks
    assert not llama.get_input_embeddings()._forward_hooks


def test_in_place_operations_after_the_layer_are_allowed() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(inplace=True))
    seen: list[Tensor] = []
    with watch_gradients(model, {layer: lambda x, g: seen.append(g)}):
        model(torch.ones(2, 3)).sum().backward()
    assert seen[0].shape == (2, 3)
