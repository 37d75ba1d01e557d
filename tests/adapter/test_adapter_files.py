"""Damaged adapter files and files of other models are refused, by name, on every way of loading."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from localora import PlacementError, calibrate, export_lora
from localora.adapter.adapter_file import check_config_file, read_adapter
from localora.adapter.layer import LocalizedLinear
from localora.adapter.status import adapted_layers
from localora.errors import ConfigError, LocaloraError
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
    (
        "too-short",
        change(labels("row"), lambda t: t[:-1]),
        r"localized_.* has shape .* in the adapter file, but its config needs .*; was one of them",
    ),
    ("int64", change(labels("col"), lambda t: t.long()), r"col_labels is torch\.int64 .* instead of torch\.int8"),
    ("float", change(labels("row"), lambda t: t.float()), r"row_labels is torch\.float32 .* instead of torch\.int8"),
    ("no-labels", drop(labels("row")), r"lacks .*localized_row_labels.*Labels are never recomputed"),
    ("no-factor", drop(f"{LAYER}.localized_local_A.weight"), r"lacks .*localized_local_A.*load the complete file"),
    ("uncovered", uncover_a_row, r"file is damaged at layer .*covered rows \d+ instead of \d+"),
    (
        "factor-shape",
        change(f"{LAYER}.localized_local_B.weight", lambda t: t[:, :-1]),
        r"local_B.* has shape .* in the adapter file, but its config needs",
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
    for mode in (True, False):  # refused in every pass, not the first alone
        with pytest.raises(PlacementError, match=r"damaged at layer .*layers.1.mlp.down_proj: row labels are still"):
            model.train(mode)(**token_batch())


def test_a_saved_config_of_a_new_adapter_waits_for_a_placement(tmp_path: Path) -> None:
    config = PeftConfig.from_pretrained(str(saved(BY_NAME["cps-lora"], tmp_path)))
    model = get_peft_model(tiny_llama(), config)
    assert all(layer.is_unplaced("default") for _, layer in adapted_layers(model, "default"))
    assert len(calibrate(model, [token_batch()]).layers) == 8


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_label("row", 0, 99), r"row labels must lie in -1\.\.\d+, got -?\d+\.\.99"),
        (
            change(labels("col"), lambda t: t.long()),
            r"down_proj.localized_col_labels is torch\.int64 in the adapter file instead of torch\.int8",
        ),
        (drop(labels("col")), "the adapter file lacks .*down_proj.localized_col_labels"),
        (drop(f"{LAYER}.localized_local_B.weight"), "the adapter file lacks .*down_proj.localized_local_B.weight"),
        (uncover_a_row, "covered rows"),
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
        ("cps-lora", {"r": 5}, "was one of them edited"),
        ("cps-lora", {"clusters": 2}, r"row labels must lie in -1\.\.1, got 0\.\.2"),
        ("g-lora", {"local_size": 1.0}, "was one of them edited"),
        ("g-lora", {"global_share": 0.75}, "was one of them edited"),
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
    with pytest.raises(PlacementError, match=r"the adapter file lacks|which its config has no place for"):
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


# Files from strangers


def add(key: str, tensor: Tensor) -> Edit:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[key] = tensor

    return edit


def unplace(tensors: dict[str, Tensor]) -> None:
    for side in ("row", "col"):
        tensors[labels(side)].fill_(-2)


def every_way(folder: Path) -> list[Callable[[], object]]:
    """Of loading a folder, on a new model and over an adapter, and of reading it without a model."""
    over = get_peft_model(tiny_llama(), BY_NAME["cps-lora"].config(target_modules=LLAMA_TARGETS))
    return [
        lambda: PeftModel.from_pretrained(tiny_llama(), folder),
        lambda: over.load_adapter(folder, "default"),
        lambda: read_adapter(folder),
        lambda: export_lora(folder, folder.parent / "out"),
    ]


def with_first(value: float) -> Callable[[Tensor], Tensor]:
    def edit(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return edit


LOCAL_B = f"{LAYER}.localized_local_B.weight"


def huge(tensors: dict[str, Tensor]) -> None:
    for side in "AB":
        tensors[f"{LAYER}.localized_local_{side}.weight"].fill_(3e30)


HOSTILE: dict[str, tuple[Edit, str]] = {
    "base-embedding": (
        add("base_model.model.model.embed_tokens.weight", torch.zeros(64, 32)),
        "embed_tokens.weight, which belongs .*would overwrite the base model",
    ),
    "base-layer": (
        add(f"{LAYER}.base_layer.weight", torch.zeros(32, 48)),
        r"down_proj.base_layer.weight, which belongs .*would overwrite the base model",
    ),
    "layer-of-no-target": (
        add("base_model.model.lm_head.weight", torch.zeros(64, 32)),
        r"lm_head.weight, which belongs .*would overwrite",
    ),
    "adapter-of-no-target": (
        add("base_model.model.lm_head.localized_local_A.weight", torch.zeros(4, 32)),
        r"lm_head|lacks",
    ),
    "tensor-of-no-place": (
        add(f"{LAYER}.localized_global_A.weight", torch.zeros(2, 48)),
        r"down_proj.localized_global_A.weight, which its config has no place for",
    ),
    "one-layer-unplaced": (unplace, r"down_proj has no placement, though other layers have one"),
    "scalar": (change(LOCAL_B, lambda t: torch.tensor(1.0)), r"down_proj.localized_local_B.weight has shape \(\)"),
    "three-dimensions": (change(LOCAL_B, lambda t: t[None]), r"local_B.weight has shape \(1, 32, 4\)"),
    "labels-of-two-dimensions": (change(labels("row"), lambda t: t[None]), r"row_labels has shape \(1, 32\)"),
    "fp8": (change(LOCAL_B, lambda t: t.to(torch.float8_e4m3fn)), r"local_B.weight is .*(F8_E4M3|float8)"),
    "complex": (change(LOCAL_B, lambda t: t.to(torch.complex64)), r"local_B.weight is .*(C64|complex)"),
    "integers": (change(LOCAL_B, lambda t: t.to(torch.int32)), r"local_B.weight is torch.int32 in the adapter file"),
    "nan": (change(LOCAL_B, with_first(math.nan)), r"down_proj.localized_local_B.weight holds NaN or infinite"),
    "infinite": (change(LOCAL_B, with_first(-math.inf)), r"down_proj.localized_local_B.weight holds NaN or infinite"),
    "infinite-product": (huge, r"local factors of .*down_proj in the adapter file are so large"),
    "empty": (change(LOCAL_B, lambda t: t[:0]), r"local_B.weight (is empty|has shape \(0, 4\))"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tensors_are_refused_on_every_way_and_the_base_is_untouched(tmp_path: Path, name: str) -> None:
    edit, message = HOSTILE[name]
    folder = tmp_path / "in"
    edit_tensors(saved(BY_NAME["cps-lora"], folder), edit)
    for load in every_way(folder):
        with pytest.raises(PlacementError, match=message):
            load()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_trainable", [False, True])
@pytest.mark.parametrize(
    "name", [name for name in HOSTILE if name not in ("fp8", "integers", "complex")]
)  # which it casts
def test_hostile_tensors_never_act_by_the_loader_of_transformers(tmp_path: Path, name: str, is_trainable: bool) -> None:
    """It shows us nothing while it loads, and refuses some in words of its own; the rest ends at the first pass."""
    edit, _ = HOSTILE[name]
    edit_tensors(saved(BY_NAME["cps-lora"], tmp_path), edit)
    model = tiny_llama()
    told = {
        "base-embedding": r"overwrote model.embed_tokens.weight of the base model",
        "base-layer": r"overwrote model.layers.1.mlp.down_proj.base_layer.weight of the base model",
        "layer-of-no-target": r"overwrote lm_head.weight of the base model",
        "one-layer-unplaced": r"down_proj has no placement, though other layers have one",
        "nan": r"down_proj.localized_local_B.weight holds NaN or infinite",
        "infinite-product": r"local factors of .*down_proj in the adapter file are so large",
        "infinite": r"down_proj.localized_local_B.weight holds NaN or infinite",
    }

    def load_and_use() -> None:
        model.load_adapter(str(tmp_path), is_trainable=is_trainable)
        model(**token_batch())

    if name in ("adapter-of-no-target", "tensor-of-no-place"):  # it has no place for them either, and says so
        load_and_use()
        return
    with pytest.raises((ValueError, RuntimeError, TypeError), match=told.get(name, ".")):
        load_and_use()


def test_the_loader_of_transformers_may_be_followed_by_anything_sound(tmp_path: Path) -> None:
    model = tiny_llama()
    model.load_adapter(str(saved(BY_NAME["hybrid"], tmp_path)))
    model.resize_token_embeddings(70, mean_resizing=False)
    model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert model(**token_batch()).logits.shape[-1] == 70


def test_the_loader_of_transformers_takes_modules_to_save(tmp_path: Path) -> None:
    model = tiny_llama()
    model.load_adapter(str(saved(BY_NAME["hybrid"], tmp_path, modules_to_save=["lm_head"])))
    model(**token_batch())


def test_only_modules_to_save_may_be_among_the_tensors(tmp_path: Path) -> None:
    folder = saved(BY_NAME["cps-lora"], tmp_path / "in", modules_to_save=["lm_head"])
    assert list(read_adapter(folder).others) == ["base_model.model.lm_head.weight"]
    PeftModel.from_pretrained(tiny_llama(), folder)
    edit_tensors(folder, add("base_model.model.lm_head.original_module.weight", torch.zeros(64, 32)))
    for load in every_way(folder):
        with pytest.raises(PlacementError, match=r"original_module.weight.* which belongs"):
            load()


@pytest.mark.parametrize("value", [10**6, -1, 2.5, True, "three", None, 10**30])
@pytest.mark.parametrize("key", ["consolidated_rank", "r"])
def test_no_rank_of_a_config_makes_room_before_the_file_is_read(
    tmp_path: Path, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(BY_NAME["cps-lora"], tmp_path / "in")
    edit_config(folder, **{key: value})
    monkeypatch.setattr(LocalizedLinear, "add_adapter", lambda *_, **__: pytest.fail("an adapter was allocated"))
    for load in (lambda: PeftModel.from_pretrained(tiny_llama(), folder), lambda: read_adapter(folder)):
        with pytest.raises((PlacementError, ConfigError), match=f"{key}|in the adapter file|the adapter file lacks"):
            load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "adapter_config.json is no readable JSON"),
        ("[]", "adapter_config.json holds no object"),
        ('{"peft_type": "LOCALIZED", "method": "cps-lora", "r": 4, "r": 5}', "config.json: the key 'r' is given twice"),
        (
            '{"peft_type": "LOCALIZED", "method": ["cps-lora"]}',
            r"adapter_config.json: .*names the method \['cps-lora'\]",
        ),
        ('{"peft_type": "LOCALIZED", "method": "cps-lora", "dropout": null}', "config.json: dropout must be a number"),
        (
            '{"peft_type": "LOCALIZED", "method": "cps-lora", "alpha": NaN}',
            "config.json: alpha must be a finite number",
        ),
        ('{"peft_type": "LOCALIZED", "method": "cps-lora", "task_type": "X"}', "config.json: Invalid task type: 'X'"),
        (
            '{"peft_type": "LOCALIZED", "method": "cps-lora", "rank_pattern": {"((.*)*)*!": 2}}',
            "config.json: rank_pattern: .* for ever to match",
        ),
        (
            '{"peft_type": "LOCALIZED", "base_model_name_or_path": "\\ud800"}',
            "config.json is no readable JSON.*surrogate",
        ),
        ('{"peft_type": "LORA"}', r"/\S+ holds an adapter of type LORA, not a localora adapter"),
    ],
)
def test_a_malformed_config_is_named_by_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    folder = saved(BY_NAME["cps-lora"], tmp_path)
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(LocaloraError, match=message):
        read_adapter(folder)


def test_a_pickled_file_is_refused(tmp_path: Path) -> None:
    folder = saved(BY_NAME["cps-lora"], tmp_path)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    for load in (lambda: PeftModel.from_pretrained(tiny_llama(), folder), lambda: read_adapter(folder)):
        with pytest.raises(PlacementError, match=r"adapter_model.bin is pickled"):
            load()


def test_a_deeper_model_is_told_which_layers_the_file_lacks(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    saved(BY_NAME["cps-lora"], tmp_path)
    config = tiny_llama().config
    config.num_hidden_layers = 3
    with pytest.raises(
        PlacementError, match=r"lacks 4 of the 12 layers .*model.layers.2.mlp.down_proj, .*another model"
    ):
        PeftModel.from_pretrained(LlamaForCausalLM(config), tmp_path)
    config.num_hidden_layers = 1
    with pytest.raises(PlacementError, match=r"holds 4 layers that this model does not adapt.*layers.1"):
        PeftModel.from_pretrained(LlamaForCausalLM(config), tmp_path)


def test_twenty_thousand_keys_are_read_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text("{" + ",".join(f'"key{i}": 1' for i in range(20_000)) + ',"key7": 2}')
    with pytest.raises(ConfigError, match="the key 'key7' is given twice"):
        check_config_file(path)


MUTATIONS = st.sampled_from(["drop", "rename", "reshape", "retype", "relabel", "truncate", "config"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_adapter_is_refused_by_name_or_is_what_the_file_says(tmp_path: Path, data: st.DataObject) -> None:
    """The dense factors of what still loads are held against the masked product of what the file holds."""
    folder = saved(BY_NAME["cps-lora"], tmp_path)
    tensors = load_file(folder / WEIGHTS)
    kind = data.draw(MUTATIONS)
    key = data.draw(st.sampled_from(sorted(tensors)))
    if kind == "drop":
        del tensors[key]
    elif kind == "rename":
        tensors[data.draw(st.text(min_size=1, max_size=12)) + key] = tensors.pop(key)
    elif kind == "reshape":
        tensors[key] = tensors[key].flatten().reshape(data.draw(st.sampled_from([(-1,), (1, -1), (2, -1)])))
    elif kind == "retype":
        dtype = data.draw(st.sampled_from([torch.int8, torch.int64, torch.float16, torch.float64, torch.bool]))
        tensors[key] = tensors[key].to(dtype)
    elif kind == "relabel":
        side = data.draw(st.sampled_from(["row", "col"]))
        tensors[labels(side)][data.draw(st.integers(0, 31))] = data.draw(st.integers(-5, 5))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS)
    if kind == "truncate":
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif kind == "config":
        values = json.loads((folder / "adapter_config.json").read_text())
        junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)
        edit_config(folder, **{data.draw(st.sampled_from(sorted(values))): data.draw(junk)})
    try:
        adapter = read_adapter(folder)
        adapter.check_placed()
    except LocaloraError:
        return
    for name, layer in adapter.layers.items():
        A, B = layer.dense_factors()
        tensors = load_file(folder / WEIGHTS)
        own = {
            k.partition(".localized_")[2]: t for k, t in tensors.items() if k.startswith(f"base_model.model.{name}.l")
        }
        mask = own["row_labels"][:, None] == own["col_labels"][None, :]
        product = own["local_B.weight"].double() @ own["local_A.weight"].double() * mask
        torch.testing.assert_close(
            B.double() @ A.double(), adapter.config.layer_scale(name) * product, rtol=1e-3, atol=1e-3
        )
