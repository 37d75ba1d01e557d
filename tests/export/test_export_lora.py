"""The exported folder: the contract that serving engines agree on, key by key, and numbers equal to the adapter's.

That stock PEFT reads it without localora is shown in tests/adapter/test_fresh_process.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, safe_open
from torch import nn

from adapted_models import adapted, after_events, logits
from localora import calibrate, export_lora
from localora.adapter.status import adapted_layers
from localora.export.engines import RANK_GRID
from method_table import BY_NAME, Method, every_method
from tiny_models import GPT2_TARGETS, LLAMA_TARGETS, MLP_TARGETS, Mlp, tiny_gpt2, tiny_llama, token_batch

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# At r = 4: global rank plus clusters times rank.
DENSE_RANK = {"lora-by-share": 4, "lora-by-clusters": 4, "g-lora": 6, "cps-lora": 12, "hybrid": 6}


def config_of(folder: Path) -> dict:
    return json.loads((folder / CONFIG).read_text())


@every_method
def test_contract_key_by_key(method: Method, tmp_path: Path) -> None:
    model = adapted(method, task_type="CAUSAL_LM", use_rslora=True, alpha_pattern={"k_proj": 3.0})
    model.peft_config["default"].base_model_name_or_path = "some/model"
    export_lora(model, tmp_path)
    config = config_of(tmp_path)
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"] == (16 if method.name == "cps-lora" else 8)
    assert type(config["r"]) is type(config["lora_alpha"]) is int
    assert config["target_modules"] == sorted(LLAMA_TARGETS)
    assert config["bias"] == "none"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == "some/model"
    assert config["inference_mode"] is True
    assert config["lora_dropout"] == 0
    for key in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias"):
        assert config[key] is False, key
    for key in ("rank_pattern", "alpha_pattern"):
        assert config[key] == {}, key
    for key in ("modules_to_save", "layers_to_transform", "layers_pattern", "exclude_modules"):
        assert config[key] is None, key
    rank = config["r"]
    tensors = load_file(tmp_path / WEIGHTS)
    assert len(tensors) == 2 * 8
    for name, layer in adapted_layers(model, "default"):
        A, B = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        assert (A.shape, B.shape) == ((rank, layer.in_features), (layer.out_features, rank))
        torch.testing.assert_close(B @ A, layer.get_delta_weight("default").detach(), rtol=1e-5, atol=1e-6)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, WEIGHTS, "README.md"}


def summed(method: Method) -> PeftModel:
    model = adapted(method)
    model.add_adapter("other", method.config(target_modules=["q_proj", "down_proj"], seed=7))
    model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum")
    model.set_adapter("sum")
    return model


# Every way in which an adapter comes to be what it is.
ADAPTERS: dict[str, Callable[[Method], PeftModel]] = {
    "names": adapted,
    "all-linear": lambda method: adapted(method, target_modules="all-linear"),
    "regex": lambda method: adapted(method, target_modules=r".*layers\.0.*(q_proj|down_proj)"),
    "full-names": lambda method: adapted(method, target_modules=["layers.1.self_attn.q_proj", "k_proj"]),
    "blocks": lambda method: adapted(method, layers_to_transform=[1]),
    "exclude": lambda method: adapted(method, exclude_modules=["layers.0.self_attn.q_proj"]),
    "ranks": lambda method: adapted(method, rank_pattern={"q_proj": 8}, use_rslora=True),
    "after-events": lambda method: after_events(method.name, "factors")[0].eval(),
    "after-merged-events": lambda method: after_events(method.name, "merged")[0].eval(),
    "sum": summed,
}


@every_method
@pytest.mark.parametrize("made", ADAPTERS)
def test_folder_and_model_give_the_same_bytes_and_stock_lora_the_same_logits(
    method: Method, made: str, tmp_path: Path
) -> None:
    model = ADAPTERS[made](method)
    name = model.active_adapter
    model.save_pretrained(tmp_path / "adapter", selected_adapters=[name])
    folder = tmp_path / "adapter" / ("" if name == "default" else name)
    first = export_lora(model, tmp_path / "a", adapter_name=name)
    second = export_lora(folder, tmp_path / "b")
    for file in (WEIGHTS, CONFIG):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert (first.rank, first.layers, first.max_error) == (second.rank, second.layers, second.max_error)
    layers = adapted_layers(model, name)
    assert first.exact_rank == max(len(layer.dense_factors(name)[0]) for _, layer in layers)
    if "events" in made:
        assert first.exact_rank == 3 * max(layer.localized_layout[name].budget.dense_rank for _, layer in layers)
    plain = PeftModel.from_pretrained(tiny_llama(), tmp_path / "a").eval()
    assert isinstance(plain.peft_config["default"], LoraConfig)
    lora_layers = {key.partition(".lora_A")[0] for key, _ in plain.named_parameters() if ".lora_A." in key}
    assert lora_layers == {key for key, _ in layers}
    expected = logits(model)
    assert (logits(plain) - expected).norm() <= 1e-5 * expected.norm()


@every_method
def test_report_and_bf16_error(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    report = export_lora(model, tmp_path / "out")
    exact = max(layer.dense_factors("default")[0].shape[0] for _, layer in adapted_layers(model, "default"))
    assert exact == DENSE_RANK[method.name]
    assert (report.path, report.layers, report.exact_rank, report.kept_rank) == (tmp_path / "out", 8, exact, exact)
    assert report.rank == min(step for step in RANK_GRID if step >= exact)
    assert report.max_error < 1e-6
    worst = 0.0
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    for name, layer in adapted_layers(model, "default"):
        A, B = (tensors[f"{name}.lora_{side}.weight"].bfloat16().double() for side in "AB")
        delta = layer.get_delta_weight("default").detach().double()
        worst = max(worst, float((B @ A - delta).norm() / delta.norm()))
    assert report.bf16_error == pytest.approx(worst, rel=1e-3)
    assert 1e-4 < report.bf16_error < 1e-2
    padded = "" if report.rank == exact else f", zero-padded to {report.rank}"
    assert f"plain LoRA of rank {exact} (exact){padded}, 8 layers" in str(report)


@pytest.mark.parametrize(
    ("r", "clusters", "rank"), [(1, 1, 8), (2, 4, 8), (3, 3, 16), (4, 8, 32), (8, 5, 64), (10, 10, 128), (16, 15, 256)]
)
def test_ranks_land_on_the_grid(tmp_path: Path, r: int, clusters: int, rank: int) -> None:
    model = get_peft_model(Mlp(), BY_NAME["cps-lora"].config(target_modules=MLP_TARGETS, r=r, clusters=clusters))
    report = export_lora(model, tmp_path)
    assert report.rank == config_of(tmp_path)["r"] == rank
    assert report.exact_rank == r * clusters


def test_a_rank_above_the_grid_warns_and_is_exact(tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(90, 70))
    model = get_peft_model(base, BY_NAME["cps-lora"].config(target_modules=["0"], r=40, clusters=13))
    with pytest.warns(UserWarning, match="rank 520, and vLLM stops at 512; export with --rank 512"):
        report = export_lora(model, tmp_path / "exact")
    assert report.rank == 520
    assert report.max_error < 1e-5
    assert (
        export_lora(model, tmp_path / "truncated", rank=16).rank == 16
    )  # and no warning, which would be an error here


@every_method
def test_truncation_reports_the_tail_of_the_dense_svd(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    report = export_lora(model, tmp_path / "out", rank=3)
    tails = []
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    for name, layer in adapted_layers(model, "default"):
        delta = layer.get_delta_weight("default").detach().double()
        S = torch.linalg.svdvals(delta)
        tails.append(float(S[3:].norm() / S.norm()))
        A, B = (tensors[f"{name}.lora_{side}.weight"] for side in "AB")
        assert torch.linalg.matrix_rank(B.double() @ A.double(), rtol=1e-5) == 3
        assert (B.double() @ A.double() - delta).norm() / S.norm() == pytest.approx(tails[-1], rel=1e-4)
    assert report.max_error == pytest.approx(max(tails), rel=1e-4)
    assert (report.rank, report.kept_rank) == (8, 3)
    assert f"rank 3 (truncated from {report.exact_rank}), zero-padded to 8" in str(report)


def test_a_truncation_that_lands_on_the_exact_rank_s_step_is_still_called_one(tmp_path: Path) -> None:
    report = export_lora(adapted(BY_NAME["cps-lora"]), tmp_path, rank=10)
    assert (report.rank, report.kept_rank, report.exact_rank) == (16, 10, 12)
    assert "rank 10 (truncated from 12), zero-padded to 16" in str(report)
    assert report.max_error > 1e-3


def test_truncating_to_more_than_there_is_changes_nothing(tmp_path: Path) -> None:
    model = adapted(BY_NAME["cps-lora"])
    export_lora(model, tmp_path / "a")
    assert export_lora(model, tmp_path / "b", rank=64).rank == 16
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


@every_method
def test_conv1d(method: Method, tmp_path: Path) -> None:
    model = get_peft_model(tiny_gpt2(), method.config(target_modules=GPT2_TARGETS)).eval()
    model.save_pretrained(tmp_path / "adapter")
    export_lora(model, tmp_path / "a")
    export_lora(tmp_path / "adapter", tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert config_of(tmp_path / "a")["fan_in_fan_out"] is True
    # A folder does not say what layers its base model has; PEFT finds that out itself and says so.
    assert config_of(tmp_path / "a") == {**config_of(tmp_path / "b"), "fan_in_fan_out": True}
    expected = logits(model)
    plain = PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "a").eval()
    assert (logits(plain) - expected).norm() <= 1e-5 * expected.norm()
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        plain = PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "b").eval()
    assert (logits(plain) - expected).norm() <= 1e-5 * expected.norm()


@every_method
def test_modules_to_save_go_along_with_a_warning(method: Method, tmp_path: Path) -> None:
    model = adapted(method, modules_to_save=["lm_head"])
    model.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(-2)
    model.save_pretrained(tmp_path / "adapter")
    for source, out in ((model, "a"), (tmp_path / "adapter", "b")):
        with pytest.warns(
            UserWarning, match="modules_to_save; PEFT loads them from the export, but serving engines refuse"
        ):
            export_lora(source, tmp_path / out)
    for file in (WEIGHTS, CONFIG):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert config_of(tmp_path / "a")["modules_to_save"] == ["lm_head"]
    plain = PeftModel.from_pretrained(tiny_llama(), tmp_path / "a").eval()
    expected = logits(model)
    assert (logits(plain) - expected).norm() <= 1e-5 * expected.norm()


def test_a_bfloat16_adapter(tmp_path: Path) -> None:
    config = BY_NAME["hybrid"].config(target_modules=LLAMA_TARGETS)
    model = get_peft_model(tiny_llama().bfloat16(), config, autocast_adapter_dtype=False).eval()
    model.save_pretrained(tmp_path / "adapter")
    assert export_lora(model, tmp_path / "a").max_error < 1e-14
    export_lora(tmp_path / "adapter", tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert {tensor.dtype for tensor in load_file(tmp_path / "a" / WEIGHTS).values()} == {torch.bfloat16}


def test_one_adapter_of_several_and_a_merged_one(tmp_path: Path) -> None:
    model = adapted(BY_NAME["g-lora"])
    model.add_adapter("other", BY_NAME["cps-lora"].config(target_modules=["q_proj"]))
    assert export_lora(model, tmp_path / "other", adapter_name="other").layers == 2
    export_lora(model, tmp_path / "a")
    model.merge_adapter()
    export_lora(model, tmp_path / "merged")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "merged" / WEIGHTS).read_bytes()


def test_a_calibrated_trained_adapter(tmp_path: Path) -> None:
    model = adapted(BY_NAME["g-lora"], placement="calibrate", init_weights=True)
    calibrate(model, [token_batch()])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**token_batch()).loss.backward()
    optimizer.step()
    export_lora(model, tmp_path)
    expected = logits(model)
    plain = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert (logits(plain) - expected).norm() <= 1e-5 * expected.norm()


def test_an_untrained_adapter_is_zero_and_has_no_error(tmp_path: Path) -> None:
    report = export_lora(adapted(BY_NAME["cps-lora"], init_weights=True), tmp_path)
    assert (report.max_error, report.bf16_error) == (0.0, 0.0)


# Refusals


def test_onto_its_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    adapted(BY_NAME["g-lora"]).save_pretrained(folder)
    before = (folder / WEIGHTS).read_bytes()
    for out in (folder, tmp_path / "adapter" / ".." / "adapter"):
        with pytest.raises(ValueError, match="is the adapter's own folder; export to another one"):
            export_lora(folder, out)
    assert (folder / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("rank", [0, -3])
def test_a_rank_below_one(tmp_path: Path, rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank must be an integer of at least 1, got {rank}"):
        export_lora(adapted(BY_NAME["g-lora"]), tmp_path / "out", rank=rank)


def test_what_is_no_localora_adapter(tmp_path: Path) -> None:
    lora = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="no layer of this model holds a localora adapter named 'default'"):
        export_lora(lora, tmp_path / "out")
    with pytest.raises(ValueError, match="no layer of this model holds a localora adapter named 'x'"):
        export_lora(adapted(BY_NAME["g-lora"]), tmp_path / "out", adapter_name="x")
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"holds an adapter of type .*LORA.*, not a localora adapter"):
        export_lora(tmp_path / "lora", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"holds no adapter \(no adapter_config.json\)"):
        export_lora(tmp_path, tmp_path / "out")
    adapted(BY_NAME["g-lora"]).save_pretrained(tmp_path / "half")
    (tmp_path / "half" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model\.safetensors; save the adapter with"):
        export_lora(tmp_path / "half", tmp_path / "out")
    assert not (tmp_path / "out").exists()
