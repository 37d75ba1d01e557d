"""Forward and all gradients, whole tensors in float64: against PEFT's LoRA, and against a dense masked product."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call

from localora.adapter.layer import LocalizedLinear
from localora.adapter.status import adapted_layers
from localora.placement.partition import Partition
from method_table import METHODS, Method, every_method
from tiny_models import GPT2_TARGETS, LLAMA_TARGETS, MLP_TARGETS, Mlp, mlp_batch, tiny_gpt2, tiny_llama, token_batch

MODELS: dict[str, tuple[Callable[[], nn.Module], list[str], Callable[[], dict[str, Tensor]]]] = {
    "llama": (tiny_llama, LLAMA_TARGETS, token_batch),
    "gpt2": (tiny_gpt2, GPT2_TARGETS, token_batch),
    "mlp": (Mlp, MLP_TARGETS, mlp_batch),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def build(kind: str, method: Method, **options: object) -> tuple[PeftModel, dict[str, Tensor]]:
    make, targets, make_batch = MODELS[kind]
    model = get_peft_model(make().double(), method.config(target_modules=targets, **options)).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in make_batch().items()}
    return model, batch


def masked_product(layer: LocalizedLinear, leaves: dict[str, Tensor], scale: float) -> Tensor:
    """The oracle: s B A for the global term, plus s (B A masked to equal labels) with B and A unpacked row by row."""
    delta = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    if "localized_global_A" in leaves:
        delta = delta + scale * leaves["localized_global_B"] @ leaves["localized_global_A"]
    if "localized_local_A" in leaves:
        partition = layer.local_partition("default")
        assert partition is not None
        unpack_rows = torch.eye(partition.m, dtype=torch.float64)[:, partition.row_labels >= 0]
        unpack_cols = torch.eye(partition.n, dtype=torch.float64)[partition.col_labels >= 0]
        product = (unpack_rows @ leaves["localized_local_B"]) @ (leaves["localized_local_A"] @ unpack_cols)
        delta = delta + scale * torch.where(partition.mask(), product, torch.zeros_like(product))
    return delta


@every_method
@pytest.mark.parametrize(("kind", "use_rslora"), [("llama", False), ("gpt2", False), ("mlp", False), ("mlp", True)])
def test_equals_dense_masked_product(method: Method, kind: str, use_rslora: bool) -> None:
    model, batch = build(kind, method, use_rslora=use_rslora)
    output = model(**batch)
    output["loss"].backward()

    scale = 8 / 4**0.5 if use_rslora else 8 / 4
    plain = MODELS[kind][0]().double()
    leaves: dict[str, dict[str, Tensor]] = {}
    weights = dict(plain.named_parameters())
    for name, layer in adapted_layers(model, "default"):
        mine = leaves[name] = {
            attribute: getattr(layer, attribute)["default"].weight.detach().clone().requires_grad_()
            for attribute in layer.adapter_layer_names
            if "default" in getattr(layer, attribute)
        }
        delta = masked_product(layer, mine, scale)
        key = name.removeprefix("base_model.model.") + ".weight"
        weights[key] = weights[key].detach() + (delta.T if layer.is_conv1d else delta)
        torch.testing.assert_close(
            layer.get_delta_weight("default").detach(), (delta.T if layer.is_conv1d else delta).detach()
        )
    expected = functional_call(plain, weights, kwargs=batch)
    expected["loss"].backward()

    assert len(leaves) == 2 * len(MODELS[kind][1]) if kind != "mlp" else len(leaves) == 2
    torch.testing.assert_close(output["logits"], expected["logits"], rtol=1e-9, atol=1e-11)
    for name, layer in adapted_layers(model, "default"):
        for attribute, leaf in leaves[name].items():
            gradient = getattr(layer, attribute)["default"].weight.grad
            assert leaf.grad is not None
            assert leaf.grad.abs().max() > 0
            torch.testing.assert_close(gradient, leaf.grad, rtol=1e-8, atol=1e-11, msg=f"{name}.{attribute}")


@every_model
@pytest.mark.parametrize("method", METHODS[:2], ids=lambda method: method.name)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_lora_as_placement_equals_peft_lora(method: Method, kind: str, use_rslora: bool) -> None:
    ours, batch = build(kind, method, use_rslora=use_rslora)
    make, targets, _ = MODELS[kind]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, use_rslora=use_rslora, fan_in_fan_out=kind == "gpt2")
    theirs = get_peft_model(make().double(), config).double()
    term = "global" if method.name == "lora-by-share" else "local"

    def pairs() -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [
            (getattr(layer, f"localized_{term}_{side}")["default"].weight, their.weight)
            for name, layer in adapted_layers(ours, "default")
            for side in "AB"
            for their in [theirs.get_submodule(name).get_submodule(f"lora_{side}.default")]
        ]

    with torch.no_grad():
        for mine, their in pairs():
            their.copy_(mine)
    output, expected = ours(**batch), theirs(**batch)
    torch.testing.assert_close(output["logits"], expected["logits"], rtol=1e-9, atol=1e-11)
    output["loss"].backward()
    expected["loss"].backward()
    for mine, their in pairs():
        assert mine.shape == their.shape
        torch.testing.assert_close(mine.grad, their.grad, rtol=1e-8, atol=1e-11)
    trainable = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)]
    assert trainable[0] == trainable[1]


def test_update_outside_the_labels_is_zero(mlp: Mlp) -> None:
    model = get_peft_model(mlp, METHODS[2].config(target_modules=["first"], placement="contiguous", global_share=0.0))
    layer = model.base_model.model.first
    partition = layer.local_partition("default")
    delta = layer.get_delta_weight("default")
    assert partition.mask().sum() == partition.covered_rows * partition.covered_cols == 12 * 10
    assert (delta[partition.mask()] != 0).all()
    assert (delta[~partition.mask()] == 0).all()


def test_interleaved_and_unequal_labels(mlp: Mlp) -> None:
    """Labels written by hand: clusters of sizes 1, 9 and 14 in no order, one column cluster empty."""
    model = get_peft_model(mlp, METHODS[3].config(target_modules=["first"])).double()
    layer = model.base_model.model.first
    rows = torch.tensor([2, 1] * 9 + [2] * 5 + [0])
    cols = torch.tensor([2, 1, 1, 2, 2] * 4)
    layer.place("default", Partition.from_labels(rows, cols, 3))
    A, B = (getattr(layer, f"localized_local_{side}")["default"].weight.detach() for side in "AB")
    expected = torch.zeros(24, 20, dtype=torch.float64)
    for i in range(24):
        for j in range(20):
            if rows[i] == cols[j]:
                expected[i, j] = 2 * B[i] @ A[:, j]
    torch.testing.assert_close(layer.get_delta_weight("default").detach(), expected)
    x = torch.randn(5, 20, dtype=torch.float64)
    base = mlp.first.base_layer
    torch.testing.assert_close(layer(x), x @ (base.weight + expected).T + base.bias)


def test_what_a_hook_of_the_base_layer_has_seen_is_not_written_to() -> None:
    model, kept = get_peft_model(Mlp(), METHODS[0].config(target_modules=MLP_TARGETS)), []
    layer = adapted_layers(model, "default")[0][1]
    layer.base_layer.register_forward_hook(lambda _, __, y: torch.tanh(y))  # autograd keeps what tanh gives
    layer.base_layer.register_forward_hook(lambda _, __, y: kept.append(y))
    model(**mlp_batch())["loss"].backward()
    with model.disable_adapter():
        model(**mlp_batch())
    assert torch.equal(*kept)


@every_method
def test_a_vector_alone(method: Method) -> None:
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(64, 48)), method.config(target_modules=["0"], task_type=None))
    x = torch.randn(64)
    model(x).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(x[None])[0])
