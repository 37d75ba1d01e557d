"""Dense factors are made once a generation, and never outlive the block they are kept in."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch

from adapted_models import adapted, differ, logits
from localora import hold_factors
from localora.adapter.layer import LocalizedLinear
from localora.adapter.status import adapted_layers
from method_table import BY_NAME, Method, every_method
from tiny_models import token_batch


@contextmanager
def counted() -> Iterator[list[str]]:
    """How often dense factors are made, by adapter."""
    made: list[str] = []
    plain = LocalizedLinear.factors_beside

    def factors_beside(self: LocalizedLinear, name: str, dtype: torch.dtype | None = None) -> object:
        made.append(name)
        return plain(self, name, dtype)

    with patch.object(LocalizedLinear, "factors_beside", factors_beside):
        yield made


@every_method
def test_a_generation_makes_them_for_its_first_two_tokens_alone(method: Method) -> None:
    model = adapted(method)
    prompt = token_batch()["input_ids"]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with counted() as made:
        generated = model.generate(input_ids=prompt, **options)
    assert len(made) == 2 * len(adapted_layers(model, "default"))
    with counted() as made:
        plain = model.base_model.model.generate(input_ids=prompt, **options)
    assert len(made) == 5 * len(adapted_layers(model, "default"))
    assert torch.equal(generated, plain)


@every_method
def test_inside_the_logits_are_the_same_and_after_it_writes_show(method: Method) -> None:
    model = adapted(method)
    before = logits(model)
    with hold_factors(model):
        for _ in range(2):
            assert torch.equal(logits(model), before)
        with hold_factors(model):  # the inner block opens and closes nothing
            pass
        for name, parameter in model.named_parameters():
            if "localized" in name:
                parameter.data.mul_(2)  # no version counter sees this
        assert torch.equal(logits(model), before)
    assert differ(logits(model), before)


def test_passes_with_gradient_make_their_own() -> None:
    model = adapted(BY_NAME["cps-lora"]).train()
    with hold_factors(model):
        for _ in range(2):
            logits(model)
        model(**token_batch()).loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if "localized_local_A" in name]
    assert gradients
    assert all(g is not None and g.abs().max() > 0 for g in gradients)


def test_adapters_and_precisions_do_not_mix() -> None:
    model = adapted(BY_NAME["g-lora"])
    model.add_adapter("other", BY_NAME["cps-lora"].config(target_modules=model.peft_config["default"].target_modules))
    first = logits(model)
    model.set_adapter("other")
    second = logits(model)
    assert differ(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        model.set_adapter("default")
        half = logits(model)
    model.set_adapter("other")
    with hold_factors(model):
        for _ in range(2):
            assert torch.equal(logits(model), second)
        model.set_adapter("default")
        assert torch.equal(logits(model), first)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(logits(model), half)
        assert torch.equal(logits(model), first)


def test_an_error_inside_closes_the_block() -> None:
    model = adapted(BY_NAME["cps-lora"])
    with pytest.raises(RuntimeError, match="stop"), hold_factors(model):
        raise RuntimeError("stop")
    assert model.base_model.factor_cache._kept is None
    with counted() as made:
        for _ in range(3):
            logits(model)  # each a block of its own
    assert len(made) == 3 * len(adapted_layers(model, "default"))


def test_copies_and_injected_adapters_hold_their_own() -> None:
    model = adapted(BY_NAME["cps-lora"])
    twin = copy.deepcopy(model)
    assert twin.base_model.factor_cache is not model.base_model.factor_cache
    bare = twin.base_model.model
    with counted() as made, hold_factors(bare):
        for _ in range(4):
            logits(bare)
            logits(model)
    layers = len(adapted_layers(model, "default"))
    assert len(made) == 2 * layers + 4 * layers
