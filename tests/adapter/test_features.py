"""What LoRA and GraLoRA in PEFT can do, and what ours can: a cell of docs/parity.md is what the feature's run says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import GraloraConfig, LoraConfig, PeftModel, convert_to_lora, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn

import localora
from adapted_models import differ, logits
from method_table import BY_NAME
from tiny_models import LLAMA_TARGETS, tiny_gpt2, tiny_llama, token_batch

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@dataclass(frozen=True)
class Family:
    """A column of the page: how its adapters are configured, swapped, and turned into plain LoRA."""

    make: Callable[..., Any]
    hot_swap: Callable[[nn.Module, str], None]
    as_lora: Callable[[PeftModel, Path], None]


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": LLAMA_TARGETS, "init_lora_weights": False, **options})


def gralora(**options: Any) -> GraloraConfig:
    return GraloraConfig(**{"r": 4, "gralora_k": 2, "target_modules": LLAMA_TARGETS, "init_weights": False, **options})


def peft_hot_swap(model: nn.Module, folder: str) -> None:
    hotswap_adapter(model, folder, "default")


def by_peft(model: PeftModel, folder: Path) -> None:
    """PEFT's own way, an SVD, at the rank that the update has: k r."""
    config, state = convert_to_lora(model, rank=8)
    config.save_pretrained(str(folder))
    safetensors.torch.save_file(
        {key: value.contiguous() for key, value in state.items()}, folder / "adapter_model.safetensors"
    )


def ours(name: str) -> Family:
    return Family(
        lambda **options: BY_NAME[name].config(**{"target_modules": LLAMA_TARGETS, **options}),
        localora.hot_swap,
        lambda model, folder: (localora.export_lora(model, folder), None)[1],
    )


FAMILIES = {
    "LoRA": Family(lora, peft_hot_swap, lambda model, folder: model.save_pretrained(str(folder))),
    "GraLoRA": Family(gralora, peft_hot_swap, by_peft),
    "ours": ours("cps-lora"),
}


def adapted(family: Family, model: nn.Module | None = None, **options: Any) -> PeftModel:
    torch.manual_seed(3)
    return get_peft_model(model or tiny_llama(), family.make(**options)).eval()


def plain() -> Tensor:
    return logits(tiny_llama().eval())


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((a - b).abs().max() < tolerance)


def two(family: Family) -> tuple[PeftModel, Tensor, Tensor]:
    model = adapted(family)
    first = logits(model)
    torch.manual_seed(4)
    model.add_adapter("second", family.make(**({} if family is not FAMILIES["ours"] else {"seed": 1})))
    model.set_adapter("second")
    second = logits(model.eval())
    assert differ(first, second)
    return model, first, second


def merge(family: Family, folder: Path) -> None:
    model = adapted(family)
    before = logits(model)
    assert differ(before, plain())
    model.merge_adapter(safe_merge=True)
    assert close(logits(model), before)
    model.unmerge_adapter()
    assert close(logits(model), before)
    assert close(logits(model.merge_and_unload().eval()), before)


def save(family: Family, folder: Path) -> None:
    model = adapted(family)
    model.save_pretrained(str(folder))
    for options in ({}, {"low_cpu_mem_usage": True}):
        assert close(
            logits(PeftModel.from_pretrained(tiny_llama(), str(folder), **options).eval()), logits(model), 1e-6
        )


def switch(family: Family, folder: Path) -> None:
    model, first, _ = two(family)
    model.set_adapter("default")
    assert close(logits(model), first, 1e-6)
    with model.disable_adapter():
        assert close(logits(model), plain(), 1e-6)
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]


def together(family: Family, folder: Path) -> None:
    model, first, second = two(family)
    model.base_model.set_adapter(["default", "second"])
    assert differ(logits(model), first)
    assert differ(logits(model), second)


def weighted(family: Family, folder: Path) -> None:
    model, first, _ = two(family)
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "sum", combination_type="linear")
    model.set_adapter("sum")
    assert differ(logits(model.eval()), first)


def mixed_batch(family: Family, folder: Path) -> None:
    model, first, second = two(family)
    with torch.no_grad():
        rows = model(input_ids=token_batch()["input_ids"], adapter_names=["default", "second", "__base__"]).logits
    expected = torch.stack([first[0], second[1], plain()[2]])
    assert close(rows, expected)


def swap(family: Family, folder: Path) -> None:
    model, _, second = two(family)
    model.save_pretrained(str(folder), selected_adapters=["second"])
    model = adapted(family)
    parameters = [id(parameter) for parameter in model.parameters()]
    family.hot_swap(model, str(folder / "second"))
    assert close(logits(model), second)
    assert [id(parameter) for parameter in model.parameters()] == parameters


def conv1d(family: Family, folder: Path) -> None:
    model = adapted(family, tiny_gpt2(), target_modules=["c_attn"])
    assert differ(logits(model), logits(tiny_gpt2().eval()))


def embedding(family: Family, folder: Path) -> None:
    assert differ(logits(adapted(family, target_modules=["embed_tokens"])), plain())


def convolution(family: Family, folder: Path) -> None:
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(4, 8, 3))
    x = torch.randn(1, 4, 5, 5)
    before = model(x)
    assert not close(get_peft_model(model, family.make(target_modules=["conv"]))(x), before)


def whole_modules(family: Family, folder: Path) -> None:
    model = adapted(family, modules_to_save=["lm_head"])
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(2)
    model.save_pretrained(str(folder))
    assert close(logits(PeftModel.from_pretrained(tiny_llama(), str(folder)).eval()), logits(model), 1e-6)


def patterns(family: Family, folder: Path) -> None:
    count = adapted(family).get_nb_trainable_parameters()[0]
    assert (
        adapted(family, rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 2}).get_nb_trainable_parameters()[0]
        > count
    )


def rank_stabilised(family: Family, folder: Path) -> None:
    assert differ(logits(adapted(family, use_rslora=True)), logits(adapted(family)))


def dora(family: Family, folder: Path) -> None:
    adapted(family, use_dora=True)


def biases(family: Family, folder: Path) -> None:
    model = adapted(family, tiny_gpt2(), target_modules=["c_attn"], bias="all")
    assert any(name.endswith(".bias") for name, parameter in model.named_parameters() if parameter.requires_grad)


def large_rank(family: Family, folder: Path) -> None:
    """On layers of 32 x 32, 16 x 32, 48 x 32 and 32 x 48."""
    assert differ(logits(adapted(family, r=64)), plain())


def mixed_model(family: Family, folder: Path) -> None:
    get_peft_model(tiny_llama(), family.make(), mixed=True)


def checkpointing(family: Family, folder: Path) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = adapted(family).train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(**token_batch()).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(close(a, b, 1e-5) for a, b in zip(*gradients, strict=True))


def exact_lora(family: Family, folder: Path) -> None:
    model = adapted(family)
    folder.mkdir(exist_ok=True)
    family.as_lora(model, folder / "plain")
    again = PeftModel.from_pretrained(tiny_llama(), str(folder / "plain")).eval()
    assert isinstance(again.peft_config["default"], LoraConfig)
    assert close(logits(again), logits(model), 1e-3)  # GraLoRA's SVD rounds


FEATURES: dict[str, Callable[[Family, Path], None]] = {
    "merge, unmerge, merge and unload": merge,
    "save and load, also with low_cpu_mem_usage": save,
    "several adapters: switch, disable, delete": switch,
    "several active at once": together,
    "add_weighted_adapter": weighted,
    "a batch of several adapters (adapter_names)": mixed_batch,
    "hot swap without new parameters": swap,
    "Conv1D (GPT-2)": conv1d,
    "embeddings as target": embedding,
    "Conv2d as target": convolution,
    "modules_to_save": whole_modules,
    "rank_pattern, alpha_pattern": patterns,
    "rank-stabilised scale (use_rslora)": rank_stabilised,
    "DoRA (use_dora)": dora,
    "trained biases (bias='all')": biases,
    "r larger than the layer": large_rank,
    "PeftMixedModel": mixed_model,
    "gradient checkpointing": checkpointing,
    "exact plain LoRA": exact_lora,
}


def rows_of_the_page() -> dict[str, list[str]]:
    cells = [re.split(r"\s*\|\s*", line.strip("| \n")) for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {row[0].replace("`", ""): row[1:] for row in cells if len(row) == 5}


def test_the_page_has_a_row_for_each() -> None:
    assert list(FEATURES) == [name for name in rows_of_the_page() if name in FEATURES]


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("column", list(FAMILIES))
def test_the_cell_is_what_the_run_says(feature: str, column: str, tmp_path: Path) -> None:
    expected = rows_of_the_page()[feature][list(FAMILIES).index(column)]
    assert expected in ("yes", "no")
    if expected == "yes":
        FEATURES[feature](FAMILIES[column], tmp_path)
    else:
        with pytest.raises((AssertionError, AttributeError, NotImplementedError, TypeError, ValueError)):
            FEATURES[feature](FAMILIES[column], tmp_path)


@pytest.mark.parametrize("feature", FEATURES)
def test_g_lora_can_what_cps_lora_can(feature: str, tmp_path: Path) -> None:
    if rows_of_the_page()[feature][2] == "yes":
        FEATURES[feature](ours("g-lora"), tmp_path)
