"""predict_cost against adapters really built, saved and calibrated, and against counts written out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, get_peft_model
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from localora import CpsLoraConfig, GLoraConfig, Repartitioner, adapter_size, export_lora
from localora.lab.cost import predict_cost
from localora.lab.cost.calibration import sketch_bytes, taylor_bytes
from localora.lab.model import ModelError
from localora.placement.sketch import GradientSketch, gaussian
from localora.placement.taylor import TaylorScores
from method_table import BY_NAME, Method, every_method
from tiny_experts import EXPERTS, KINDS, LAYERS, STACKS, tiny_experts
from tiny_models import LLAMA_TARGETS, token_batch


def near(size: int) -> Any:
    """Within a hundredth, which is a byte or two a tensor in files as small as these."""
    return pytest.approx(size, rel=0.01)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_and_files_are_those_of_the_built_and_saved_adapter(
    method: Method, dtype: torch.dtype, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    predicted = predict_cost(llama.config, method.config(target_modules="all-linear"), dtype=dtype)
    model = get_peft_model(llama.to(dtype), method.config(target_modules="all-linear"))
    model.save_pretrained(str(tmp_path / "adapter"))
    report = export_lora(model, tmp_path / "lora")
    trained = [p for p in model.parameters() if p.requires_grad]

    assert predicted.trainable == sum(p.numel() for p in trained)
    assert predicted.gradient_bytes == sum(p.numel() * p.element_size() for p in trained)
    assert predicted.adapter_bytes == near((tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size)
    assert predicted.export_bytes == near((tmp_path / "lora" / "adapter_model.safetensors").stat().st_size)
    assert (predicted.exact_rank, predicted.exported_rank) == (report.exact_rank, report.rank)
    assert predicted.layers == 14
    assert predicted.base_parameters == sum(p.numel() for n, p in model.named_parameters() if "localized_" not in n)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("events", [[], [0.5]], ids=["no event", "an event"])
@pytest.mark.filterwarnings("ignore:the adapter has updates of stacked experts")
def test_experts_count_one_by_one(kind: str, events: list[float], tmp_path: Path) -> None:
    model = tiny_experts(kind)
    method = BY_NAME["cps-lora"]
    config = method.config(target_modules=["q_proj"], target_parameters=STACKS, repartition=events)
    predicted = predict_cost(model.config, config, tokens=10, dtype=torch.float32)
    adapted = get_peft_model(model, config)
    if events:
        Repartitioner(adapted, None, 2, [token_batch(examples=6)]).step()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    report = export_lora(adapted, tmp_path / "lora")
    size = adapter_size(adapted)
    assert (predicted.trainable, predicted.stored, predicted.exact_rank) == (size.trainable, size.stored, size.rank)
    assert predicted.adapter_bytes == near((tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size)
    assert predicted.export_bytes == near((tmp_path / "lora" / "adapter_model.safetensors").stat().st_size)
    assert (predicted.exact_rank, predicted.exported_rank) == (report.exact_rank, report.rank)
    q, stacks = 4 * (32 + 32), EXPERTS * 4 * ((48 + 32) + (32 + 24))
    assert predicted.layers == LAYERS * (1 + 2 * EXPERTS)
    assert predicted.lora_trainable == LAYERS * (q + stacks)
    # unit vectors stand for an expert's tokens, so more tokens in a batch take no more than the attention's layers do
    more, fewer = (predict_cost(model.config, config, tokens=count).calibration_working for count in (20, 10))
    experts_alone = method.config(target_modules=[], target_parameters=STACKS)
    assert more == predict_cost(model.config, experts_alone, tokens=20).calibration_working == fewer


def test_lora_on_experts_can_be_compared(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=STACKS)
    predicted = predict_cost(tiny_experts("mixtral").config, config)
    lora = get_peft_model(tiny_experts("mixtral"), config)
    lora.save_pretrained(str(tmp_path))
    assert predicted.adapter_bytes == near((tmp_path / "adapter_model.safetensors").stat().st_size)
    assert predicted.trainable == predicted.lora_trainable == lora.get_nb_trainable_parameters()[0]
    assert predicted.layers == LAYERS * (1 + 2 * EXPERTS)


@every_method
@pytest.mark.parametrize("bound", [0, 7])
def test_scheduled_events_are_in_what_is_stored_and_exported(
    method: Method, bound: int, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    config = method.config(target_modules=LLAMA_TARGETS, repartition=[0.5, 1.0], frozen_rank=bound)
    predicted = predict_cost(llama.config, config, dtype=torch.float32)
    model = get_peft_model(llama, config)
    repartitioner = Repartitioner(model, None, 2, [token_batch()])
    assert [event is not None for event in (repartitioner.step(), repartitioner.step())] == [True, True]
    model.save_pretrained(str(tmp_path / "adapter"))
    report = export_lora(model, tmp_path / "lora")
    size = adapter_size(model)
    assert (predicted.trainable, predicted.stored, predicted.exact_rank) == (size.trainable, size.stored, size.rank)
    assert predicted.adapter_bytes == near((tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size)
    assert (predicted.exact_rank, predicted.exported_rank) == (report.exact_rank, report.rank)
    assert predicted.model == predict_cost(llama.config, method.config(target_modules=LLAMA_TARGETS)).model


def test_optimizer_memory_is_that_of_a_stepped_adam(llama: LlamaForCausalLM) -> None:
    config = CpsLoraConfig(r=4, clusters=2, placement="random", target_modules="all-linear")
    model = get_peft_model(llama, config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    model(**token_batch()).loss.backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    assert predict_cost(llama.config, config).optimizer_bytes == sum(t.nbytes for t in moments)


def test_patterns_exclusions_and_modules_to_save_count_as_in_peft(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "target_modules": LLAMA_TARGETS,
        "exclude_modules": ["k_proj"],
        "rank_pattern": {"q_proj": 6},
        "layers_to_transform": [1],
        "modules_to_save": ["lm_head"],
    }
    predicted = predict_cost(llama.config, CpsLoraConfig(r=4, clusters=3, **options), dtype=torch.float32)
    q, gate, down = 6 * (32 + 32), 4 * (48 + 32), 4 * (32 + 48)
    assert predicted.layers == 3
    assert predicted.trainable == q + gate + down + 64 * 32
    assert predicted.lora_trainable == q + gate + down
    assert predicted.exact_rank == 18
    model = get_peft_model(llama, CpsLoraConfig(r=4, clusters=3, placement="random", **options))
    model.save_pretrained(str(tmp_path))
    assert predicted.adapter_bytes == near((tmp_path / "adapter_model.safetensors").stat().st_size)


def test_lora_itself_can_be_compared(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear")
    predicted = predict_cost(llama.config, config)
    get_peft_model(llama, config).save_pretrained(str(tmp_path))
    assert predicted.adapter_bytes == near((tmp_path / "adapter_model.safetensors").stat().st_size)
    assert (predicted.exact_rank, predicted.exported_rank, predicted.calibration_kept) == (4, 8, 0)
    assert predicted.trainable == predicted.lora_trainable == 4 * 2 * (2 * 64 + 2 * 48 + 3 * 80)


def test_conv1d_models(gpt2: GPT2LMHeadModel) -> None:
    predicted = predict_cost(gpt2.config, CpsLoraConfig(r=2, clusters=2, target_modules=["c_attn"]))
    assert predicted.trainable == 2 * 2 * (32 + 96)


@pytest.mark.parametrize(
    ("name", "parameters", "lora_16"),
    [
        # parameters as published; LoRA: 16 x (2 x 2h + 2 (h + kv) + 3 (h + mlp)) x layers
        ("smollm2-135m", 134_515_008, 16 * (4 * 576 + 2 * (576 + 192) + 3 * (576 + 1536)) * 30),
        ("llama-3-1b", 1_235_814_400, 16 * (4 * 2048 + 2 * (2048 + 512) + 3 * (2048 + 8192)) * 16),
        ("llama-3-8b", 8_030_261_248, 16 * (4 * 4096 + 2 * (4096 + 1024) + 3 * (4096 + 14336)) * 32),
        ("llama-3-70b", 70_553_706_496, 16 * (4 * 8192 + 2 * (8192 + 1024) + 3 * (8192 + 28672)) * 80),
    ],
)
def test_built_in_shapes(name: str, parameters: int, lora_16: int) -> None:
    predicted = predict_cost(name, CpsLoraConfig(r=16, clusters=4, target_modules="all-linear"))
    assert predicted.base_parameters == parameters
    assert predicted.base_bytes == 2 * parameters
    assert predicted.trainable == predicted.lora_trainable == lora_16
    assert (predicted.exact_rank, predicted.exported_rank) == (64, 64)


def test_global_local_rank_and_calibration_of_the_8b() -> None:
    predicted = predict_cost("llama-3-8b", GLoraConfig(r=16, target_modules="all-linear"), tokens=512)
    assert (predicted.exact_rank, predicted.exported_rank) == (8 + 32, 64)
    assert abs(predicted.trainable / predicted.lora_trainable - 1) < 0.005
    # bfloat16 x and g are taken as they are; of 4096 columns, float32 bands of |W * G| and of W, 2048 rows each
    assert predicted.calibration_working == 2 * 4 * 2048 * 4096


def test_kept_signals_are_as_large_as_the_tensors_kept() -> None:
    shapes = [(48, 32), (16, 32), (32, 48)]
    scores = [TaylorScores(m, n) for m, n in shapes]
    kept = [t for score in scores for t in vars(score).values() if isinstance(t, torch.Tensor)]
    assert taylor_bytes([(m, n, 10) for m, n in shapes], torch.float32).kept == sum(t.nbytes for t in kept)

    sketches = [GradientSketch(m, n, 8, seed=0) for m, n in shapes]
    kept = [t for sketch in sketches for t in vars(sketch).values() if isinstance(t, torch.Tensor)]
    projections = {
        p.data_ptr(): p.nbytes for sketch in sketches for p in (gaussian(*sketch.omega), gaussian(*sketch.psi))
    }
    predicted = sketch_bytes([(m, n, 10) for m, n in shapes], 8, torch.float32)
    assert predicted.kept == sum(t.nbytes for t in kept) + sum(projections.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("signal", [TaylorScores, GradientSketch])
def test_working_memory_is_what_observing_a_layer_allocates(signal: type, dtype: torch.dtype) -> None:
    m, n, tokens, width = 2048, 768, 256, 64
    x, g, W = torch.ones(tokens, n, dtype=dtype), torch.ones(tokens, m, dtype=dtype), torch.ones(m, n, dtype=dtype)
    predicted = (
        taylor_bytes([(m, n, tokens)], dtype, "cpu")
        if signal is TaylorScores
        else sketch_bytes([(m, n, tokens)], width, dtype)
    )
    observer = TaylorScores(m, n) if signal is TaylorScores else GradientSketch(m, n, width, seed=0)
    observer.observe(x, g, W)  # makes the projections, which count as kept
    measured: list[int] = []
    for _ in range(3):  # the profiler now and then loses an event
        with torch.profiler.profile(profile_memory=True) as profile:
            observer.observe(x, g, W)  # replaces sums that were made outside, whose release the profiler cannot see
            observer.observe(x, g, W)
        live = peak = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                live += event.nbytes()
                peak = max(peak, live)
        measured.append(peak - live)
    assert predicted.working == pytest.approx(sorted(measured)[1], rel=0.02)


def test_a_local_config_is_read_from_its_folder_or_file(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    llama.config.save_pretrained(tmp_path)
    config = CpsLoraConfig(r=4, target_modules="all-linear")
    by_config = predict_cost(llama.config, config).trainable
    assert predict_cost(tmp_path, config).trainable == by_config
    assert predict_cost(tmp_path / "config.json", config).trainable == by_config
    (tmp_path / "config.json").write_text(json.dumps({"no": "model"}))
    with pytest.raises(ModelError, match=r"(?s)no model config found for .*llama-3-70b"):
        predict_cost(tmp_path, config)


def test_refusals(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="IA3Config"):
        predict_cost(llama.config, IA3Config(target_modules="all-linear"))
    with pytest.raises(ValueError, match="AdaLoraConfig"):
        predict_cost(llama.config, AdaLoraConfig(target_modules="all-linear", total_step=9))
    with pytest.raises(ValueError, match="tokens must be an integer of at least 1, got 0"):
        predict_cost(llama.config, CpsLoraConfig(target_modules="all-linear"), tokens=0)


def test_the_users_config_stays_as_it_was(llama: LlamaForCausalLM) -> None:
    config = CpsLoraConfig(r=4, placement="random", target_modules="all-linear")
    before = config.to_dict()
    predict_cost(llama.config, config)
    assert config.to_dict() == before


def test_the_table_names_every_figure(llama: LlamaForCausalLM) -> None:
    text = str(predict_cost("llama-3-8b", CpsLoraConfig(r=16, target_modules="all-linear"), tokens=4096))
    assert text.startswith("cps-lora r 16 on llama-3-8b\n")
    assert "8,030,261,248 parameters, 15.0 GiB" in text
    assert "41,943,040 (0.52% of the base; LoRA r 16: 41,943,040)" in text
    assert "64 (exact: 64)" in text
    assert "320.0 MiB" in text  # Adam: 8 x 41,943,040
    assert "calibration, 4,096 tokens a batch" in text
