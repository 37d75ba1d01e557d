"""The tiny Llama with an adapter of any row of the method table, and what the tests compare of it."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from localora import Placement, Repartitioner, placement_of
from method_table import BY_NAME, Method
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch


def adapted(method: Method, **options: object) -> PeftModel:
    """In eval mode, placed at random, with a non-zero update; `options` go to the config."""
    return get_peft_model(tiny_llama(), method.config(**{"target_modules": LLAMA_TARGETS, **options})).eval()


def unplaced(method: Method, model: nn.Module | None = None, **options: object) -> PeftModel:
    """As a user's adapter starts: waiting for calibration, with a zero update."""
    settings = {"target_modules": LLAMA_TARGETS, "placement": "calibrate", "init_weights": True, **options}
    return get_peft_model(model if model is not None else tiny_llama(), method.config(**settings))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=token_batch()["input_ids"]).logits


def after_events(method: str, frozen: str, events: int = 2) -> tuple[PeftModel, Repartitioner]:
    """A model with that many events behind it and a step after the last, so that live and frozen terms both count."""
    torch.manual_seed(1)
    config = BY_NAME[method].config(target_modules=LLAMA_TARGETS, repartition=[], repartition_every=1, frozen=frozen)
    model = get_peft_model(tiny_llama(), config)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-2)
    repartitioner = Repartitioner(model, optimizer, events + 1, [token_batch()])
    for _ in range(events + 1):
        model(**token_batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        repartitioner.step()
    assert len(repartitioner.events) == events
    return model, repartitioner


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-2)


def assert_same_placement(a: nn.Module, b: nn.Module) -> None:
    def placements(model: nn.Module) -> dict[str, Placement]:
        return {name.removeprefix("base_model.model."): placed for name, placed in placement_of(model).items()}

    assert placements(a) == placements(b)
