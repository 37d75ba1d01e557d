"""The tiny Llama with an adapter of any row of the method table, and what the tests compare of it."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from localora import Placement, placement_of
from method_table import Method
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


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-2)


def assert_same_placement(a: nn.Module, b: nn.Module) -> None:
    def placements(model: nn.Module) -> dict[str, Placement]:
        return {name.removeprefix("base_model.model."): placed for name, placed in placement_of(model).items()}

    assert placements(a) == placements(b)
