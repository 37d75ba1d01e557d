"""Damaged adapter files and files of other models are refused, by name, on every way of loading."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from localora import PlacementError, UnplacedAdapterError, calibrate, export_lora
from localora.adapter.model import adapted_layers
from method_table import BY_NAME, Method, every_method, every_placed_method
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

WEIGHTS = "adapter_model.safetensors"
LAYER = "base_model.model.model.layers.1.mlp.down_proj"
Edit = Callable[[dict[str, Tensor]], None]


def saved(method: Method, folder: Path, **options: object) -> Path:
    get_peft_model(tiny_llama(), method.config(target_modules=LLAMA_TARGETS, **options)).save_pretrained(folder)
    return folder


def edit_tensors(folder: Path, edit: Edit) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def labels(side: str) -> str:
    return f"{LAYER}.localized_{side}_labels"


def set_label(side: str, index: int, value: int) -> Edit:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[labels(side)][index] = value

    return edit


def drop(key: str) -> Edit:
    def edit(tensors: dict[str, Tensor]) -> None:
        del tensors[key]

    return edit


def change(key: str, to: Callable[[Tensor], Tensor]) -> Edit:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[key] = to(tensors[key]).contiguous()

    return edit


def uncover_a_row(tensors: dict[str, Tensor]) -> None:
    rows = tensors[labels("row")]
    rows[(rows >= 0).nonzero()[0]] = -1


DAMAGE: list[tuple[str, Edit, str]] = [
    ("too-high", set_label("row", 0, 99), r"row labels must lie in -1\.\.\d+, got -?\d+\.\.99"),
    ("too-low", set_label("col", 0, -7), r"column labels must lie in -1\.\.\d+, got -7"),
    ("half-placed", set_label("row", 0, -2), "row labels are still unplaced"),
    ("too-short", change(labels("row"), lambda t: t[:-1]), r"shape \(31,\) in the adapter file.*need \(32,\)"),
    ("int64", change(labels("col"), lambda t: t.long()), r"col_labels is torch\.int64 .* instead of torch\.int8"),
    ("float", change(labels("row"), lambda t: t.float()), r"row_labels is torch\.float32 .* instead of torch\.int8"),
    ("no-labels", drop(labels("row")), r"lacks .*localized_row_labels.*Labels are never recomputed"),
    ("no-factor", drop(f"{LAYER}.localized_local_A.weight"), r"lacks .*localized_local_A.*load the complete file"),
    ("uncovered", uncover_a_row, r"row_labels covers \d+ entries instead of \d+; the adapter file is damaged"),
    (
        "factor-shape",
        change(f"{LAYER}.localized_local_B.weight", lambda t: t[:, :-1]),
        r"local_B.* has shape .* in the adapter file, but this model and config need",
    ),
]
every_damage = pytest.mark.parametrize(("edit", "message"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])


@every_damage
@every_placed_method
def test_damage_is_refused_on_loading(method: Method, tmp_path: Path, edit: Edit, message: str) -> None:
    edit_tensors(saved(method, tmp_path), edit)
    with pytest.raises(PlacementError, match=message) as raised:
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert "layers.1.mlp.down_proj" in str(raised.value)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_damage_is_refused_on_loading_over_an_adapter(tmp_path: Path, low_cpu_mem_usage: bool) -> None:
    model = get_peft_model(tiny_llama(), BY_NAME["hybrid"].config(target_modules=LLAMA_TARGETS)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    edit_tensors(saved(BY_NAME["hybrid"], tmp_path, seed=5), set_label("row", 3, 99))
    with pytest.raises(PlacementError, match=r"damaged at layer .*down_proj"):
        model.load_adapter(tmp_path, "default", low_cpu_mem_usage=low_cpu_mem_usage)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every_placed_method
def test_damage_is_refused_by_transformers_loader_at_first_use(method: Method, tmp_path: Path) -> None:
    edit_tensors(saved(method, tmp_path), set_label("row", 0, 99))
    model = tiny_llama()
    model.load_adapter(str(tmp_path))
    with pytest.raises(PlacementError, match=r"row labels must lie in -1\.\.\d, got -?\d\.\.99"):
        model.eval()(**token_batch())


@every_placed_method
def test_missing_labels_are_never_made_up(method: Method, tmp_path: Path) -> None:
    """transformers' loader only warns of missing tensors; a random placement must not be drawn again in their stead."""
    edit_tensors(saved(method, tmp_path), drop(labels("row")))
    model = tiny_llama()
    model.load_adapter(str(tmp_path), is_trainable=True)
    assert [name for name, layer in adapted_layers(model, "default") if layer.is_unplaced("default")] == [
        LAYER.removeprefix("base_model.model.")
    ]
    with pytest.raises(UnplacedAdapterError):
        model.train()(**token_batch())


def test_a_saved_config_of_a_new_adapter_waits_for_a_placement(tmp_path: Path) -> None:
    config = PeftConfig.from_pretrained(str(saved(BY_NAME["cps-lora"], tmp_path)))
    model = get_peft_model(tiny_llama(), config)
    assert all(layer.is_unplaced("default") for _, layer in adapted_layers(model, "default"))
    assert len(calibrate(model, [token_batch()]).layers) == 8


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_label("row", 0, 99), r"row labels must lie in -1\.\.\d+, got -?\d+\.\.99"),
        (change(labels("col"), lambda t: t.long()), r"labels of .*down_proj must be torch\.int8, got .*torch\.int64"),
        (drop(labels("col")), "the adapter file lacks .*down_proj.localized_col_labels"),
        (drop(f"{LAYER}.localized_local_B.weight"), "the adapter file lacks .*down_proj.localized_local_B.weight"),
        (uncover_a_row, "covered rows|covers"),
        (change(f"{LAYER}.localized_local_A.weight", lambda t: t[:-1]), "local_A|shape|rank"),
    ],
    ids=["too-high", "int64", "no-labels", "no-factor", "uncovered", "factor-shape"],
)
@every_placed_method
def test_damage_is_refused_on_export_of_the_folder(method: Method, tmp_path: Path, edit: Edit, message: str) -> None:
    edit_tensors(saved(method, tmp_path / "in"), edit)
    with pytest.raises(PlacementError, match=message):
        export_lora(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@every_method
def test_an_adapter_of_another_model_is_refused(method: Method, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    saved(method, tmp_path)
    wider = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=48,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    with pytest.raises(PlacementError, match=r"\(.*32.*\) in the adapter file.*need \(.*48.*\); is it the adapter of"):
        PeftModel.from_pretrained(wider, tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("cps-lora", {"r": 5}, "was its config edited"),
        ("cps-lora", {"clusters": 2}, r"row labels must lie in -1\.\.1, got 0\.\.2"),
        ("g-lora", {"local_size": 1.0}, "was its config edited"),
        ("g-lora", {"global_share": 0.75}, "was its config edited"),
    ],
)
def test_a_config_that_does_not_belong_to_the_file(
    tmp_path: Path, name: str, values: dict[str, object], message: str
) -> None:
    edit_config(saved(BY_NAME[name], tmp_path), **values)
    with pytest.raises(PlacementError, match=message):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
    with pytest.raises(PlacementError):
        export_lora(tmp_path, tmp_path / "out")


def test_the_file_of_one_method_with_the_config_of_another(tmp_path: Path) -> None:
    saved(BY_NAME["g-lora"], tmp_path / "g")
    saved(BY_NAME["cps-lora"], tmp_path / "cps")
    (tmp_path / "g" / WEIGHTS).replace(tmp_path / "cps" / WEIGHTS)
    with pytest.raises(PlacementError, match=re.escape("in the adapter file, but this model and config need")):
        PeftModel.from_pretrained(tiny_llama(), tmp_path / "cps")


def test_labels_are_one_byte_and_the_file_is_hardly_larger_than_lora(tmp_path: Path) -> None:
    from peft import LoraConfig

    saved(BY_NAME["cps-lora"], tmp_path / "ours", r=8)
    get_peft_model(tiny_llama(), LoraConfig(r=8, target_modules=LLAMA_TARGETS)).save_pretrained(tmp_path / "theirs")

    def size(folder: str) -> int:
        return sum(t.numel() * t.element_size() for t in load_file(tmp_path / folder / WEIGHTS).values())

    assert size("ours") / size("theirs") == pytest.approx(1 + 1 / (8 * 4))


def test_adapted_layers_are_untouched_by_a_failed_load(tmp_path: Path) -> None:
    edit_tensors(saved(BY_NAME["cps-lora"], tmp_path), drop(labels("row")))
    model = get_peft_model(tiny_llama(), BY_NAME["cps-lora"].config(target_modules=LLAMA_TARGETS))
    placements = {name: layer.local_partition("default") for name, layer in adapted_layers(model, "default")}
    with pytest.raises(PlacementError):
        model.load_adapter(tmp_path, "default")
    assert {name: x.local_partition("default") for name, x in adapted_layers(model, "default")} == placements
