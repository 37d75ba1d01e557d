"""Precision, compilation, copies, status and generation."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from adapted_models import adapted, differ, logits
from localora.adapter.status import adapted_layers
from localora.placement.random import random_partition
from method_table import BY_NAME, Method, every_method
from tiny_models import LLAMA_TARGETS, MLP_TARGETS, Mlp, mlp_batch, tiny_llama, token_batch

G_LORA, CPS_LORA = BY_NAME["g-lora"], BY_NAME["cps-lora"]


@every_method
@pytest.mark.parametrize("autocast", [True, False])
def test_adapter_dtype_on_a_bfloat16_base(method: Method, autocast: bool, tmp_path: Path) -> None:
    config = method.config(target_modules=LLAMA_TARGETS)
    model = get_peft_model(tiny_llama().bfloat16(), config, autocast_adapter_dtype=autocast)
    wanted = torch.float32 if autocast else torch.bfloat16
    for name, tensor in model.state_dict().items():
        if "labels" in name:
            assert tensor.dtype == torch.int8
        elif "localized_" in name:
            assert tensor.dtype == wanted, name
    output = model(**token_batch())
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == wanted and torch.isfinite(g).all() for g in gradients)
    # The same adapter in float32 throughout, on the same (rounded) base weights, is near.
    exact = get_peft_model(tiny_llama().bfloat16().float(), config)
    exact.load_state_dict(model.state_dict())
    error = (output.logits.float() - exact(**token_batch()).logits).norm() / output.logits.float().norm()
    assert error < 0.05
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(tiny_llama().bfloat16(), tmp_path, autocast_adapter_dtype=autocast)
    assert torch.equal(logits(back.eval()), logits(model.eval()))


@every_method
def test_forward_and_backward_under_autocast(method: Method) -> None:
    model = adapted(method).train()
    exact = model(**token_batch()).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**token_batch())
    output.loss.backward()
    assert (output.logits.float() - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@every_method
def test_compiles_into_one_graph_that_outlives_a_move(method: Method) -> None:
    model = get_peft_model(Mlp(), method.config(target_modules=MLP_TARGETS))
    batch = mlp_batch()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)  # from its very first use
    compare_with_eager(model, compiled, batch)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _, layer in adapted_layers(model, "default"):
            budget = layer.localized_layout["default"].budget
            if budget.local and budget.has_choice:
                layer.place("default", random_partition(budget.m, budget.n, budget.local, seed=5))
        compare_with_eager(model, compiled, batch)


def compare_with_eager(model: PeftModel, compiled: Any, batch: dict[str, Tensor]) -> None:
    losses, gradients = [], []
    for run in (model, compiled):
        model.zero_grad()
        losses.append(run(**batch)["loss"])
        losses[-1].backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses)
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@every_method
def test_models_and_configs_can_be_copied(method: Method) -> None:
    config = method.config(target_modules=LLAMA_TARGETS, rank_pattern={"q_proj": 8})
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(twin) is type(config)
        assert twin.to_dict() == config.to_dict()
    model = adapted(method)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    next(p for p in twin.parameters() if p.requires_grad).data.fill_(9)
    assert differ(logits(twin), logits(model))


@every_method
def test_status_and_summary_know_the_adapter(method: Method) -> None:
    model = adapted(method)
    status = model.get_model_status()
    assert (status.peft_types, status.num_adapter_layers, status.enabled) == ({"default": "LOCALIZED"}, 8, True)
    assert status.trainable_params == model.get_nb_trainable_parameters()[0]
    assert "localized.LocalizedLinear" in repr(model)
    assert "adapters=['default']" in repr(model)


@every_method
def test_generates(method: Method) -> None:
    model = adapted(method)
    prompt = token_batch()["input_ids"]
    ours = model.generate(input_ids=prompt, max_new_tokens=5, do_sample=False)
    merged = model.merge_and_unload().generate(input_ids=prompt, max_new_tokens=5, do_sample=False)
    assert ours.shape[1] > prompt.shape[1]
    assert torch.equal(ours, merged)


def test_a_factor_changed_between_forward_and_backward_is_an_error() -> None:
    """In float32 backward makes the dense factors again; from changed ones the gradients would be silently wrong."""
    model = get_peft_model(Mlp(), BY_NAME["cps-lora"].config(target_modules=MLP_TARGETS))
    loss = model(**mlp_batch())["loss"]
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "localized_local_A" in name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_loaded_adapter_compiles_into_one_graph(tmp_path: Path) -> None:
    model = adapted(CPS_LORA)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    torch.testing.assert_close(logits(torch.compile(loaded, fullgraph=True, backend="eager")), logits(model))
