"""Every method's life on quantized bases: forward, backward, calibration, events, merge, files, export."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from localora import CalibrationError, CpsLoraConfig, GLoraConfig, Repartitioner, calibrate, export_lora, placement_of
from localora.adapter.layer import LocalizedLinear
from localora.adapter.model import adapted_layers
from localora.errors import LayerError, ScheduleError
from quantized_bases import (
    BASES,
    Base,
    every_base,
    every_base_that_does_not,
    every_base_that_reads,
    load,
    save_llama,
)
from tiny_models import token_batch

TARGETS = ["q_proj", "down_proj"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*KernelPreference"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def cps(**options: object) -> CpsLoraConfig:
    return CpsLoraConfig(r=4, clusters=2, target_modules=TARGETS, task_type="CAUSAL_LM", **options)


def adapted(base: Base, folder: Path, **options: object) -> PeftModel:
    """With an update that is large and not zero, placed at random."""
    torch.manual_seed(1)
    return get_peft_model(load(base, folder), cps(placement="random", init_weights=False, **options)).eval()


def dequantized(model: PeftModel) -> PeftModel:
    """The same with plain layers in the quantized ones' place, of the weights that those say they have."""
    twin = copy.deepcopy(model)
    for (_, layer), (_, plain) in zip(adapted_layers(model, "default"), adapted_layers(twin, "default"), strict=True):
        linear = nn.Linear(layer.in_features, layer.out_features, bias=False)
        linear.weight = nn.Parameter(layer.get_base_weight().float().clone(), requires_grad=False)
        plain.base_layer, plain.quantization_backend = linear, None
    return twin


def first(model: nn.Module) -> LocalizedLinear:
    return adapted_layers(model, "default")[0][1]


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=token_batch()["input_ids"]).logits.float()


@every_base_that_reads
def test_a_layer_and_its_gradients_are_those_of_the_weight_it_has(base: Base, folder: Path) -> None:
    layer = first(adapted(base, folder))
    W = layer.get_base_weight().float()
    x, g = torch.randn(5, 64), torch.randn(5, 64)

    def gradients(effective: Tensor | None) -> list[Tensor]:
        inputs = x.clone().requires_grad_()
        layer.zero_grad()
        y = layer(inputs) if effective is None else inputs @ effective.T
        factors = list(layer.trained("default").values())
        return [y.detach(), *torch.autograd.grad(y, [inputs, *factors], g)]

    A, B = layer.live_factors("default")
    for found, expected in zip(gradients(None), gradients(W + B @ A), strict=True):
        assert difference(found, expected) < base.noise


@every_base_that_reads
@pytest.mark.parametrize("config", [cps(), GLoraConfig(r=4, local_size=0.5, target_modules=TARGETS)], ids=["cps", "g"])
def test_calibration_finds_what_it_finds_on_the_dequantized_model(base: Base, folder: Path, config: object) -> None:
    model = get_peft_model(load(base, folder), copy.deepcopy(config))
    batches = [token_batch(seed) for seed in range(2)]
    twin = dequantized(model)
    report, expected = calibrate(model, batches), calibrate(twin, batches)
    assert report.loss == pytest.approx(expected.loss, rel=base.noise)
    if base.noise < 1e-3:
        assert placement_of(model) == placement_of(twin)
    assert [layer.held for layer in report.layers] == pytest.approx([e.held for e in expected.layers], abs=0.05)


@every_base
def test_it_learns_and_events_keep_the_function(base: Base, folder: Path) -> None:
    model = get_peft_model(load(base, folder), cps(repartition=[0.5]))
    batches = [token_batch(seed) for seed in range(2)]
    calibrate(model, batches)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    events, losses = Repartitioner(model, optimizer, 8, batches), []
    for step in range(8):
        loss = model(**batches[step % 2]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        events.step()
        losses.append(loss.item())
    (event,) = events.events
    assert losses[-1] < losses[0] - 0.3
    assert event.joined_norm > 0
    assert event.loss_after == pytest.approx(event.loss_before, rel=max(base.noise, 1e-5))


@every_base
def test_events_do_not_merge_into_a_quantized_weight(base: Base, folder: Path) -> None:
    model = adapted(base, folder, repartition=[0.5], frozen="merged")
    with pytest.raises(ScheduleError, match=r"q_proj is quantized, and rounding .*use 'factors'"):
        Repartitioner(model, None, 4, [token_batch()])


@every_base_that_reads
def test_a_merge_loses_what_rounding_to_the_grid_loses(base: Base, folder: Path) -> None:
    model = adapted(base, folder)
    layer = first(model)
    wanted = layer.get_base_weight().float() + layer.get_delta_weight("default").detach()
    plain = model.merge_and_unload().model.layers[0].self_attn.q_proj
    merged = layer.get_base_weight().float()
    assert 0 < difference(merged, wanted) < base.coarseness
    assert type(plain) is type(layer.base_layer)
    x = torch.randn(5, 64)
    assert difference(plain(x), x @ merged.T) < base.noise


@every_base
def test_a_saved_adapter_and_its_export_compute_the_same_on_a_fresh_base(
    base: Base, folder: Path, tmp_path: Path
) -> None:
    model = adapted(base, folder)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    export_lora(tmp_path / "adapter", tmp_path / "lora")
    for saved in ("adapter", "lora"):  # the second is stock PEFT's LoRA
        # In eval mode bitsandbytes packs 4-bit weights on some processors, and then computes in bfloat16.
        loaded = PeftModel.from_pretrained(load(base, folder), tmp_path / saved).train()
        assert difference(logits(loaded), expected) < max(base.noise, 1e-5)
    with model.disable_adapter():
        assert difference(logits(model), expected) > 0.3


@every_base_that_does_not
def test_where_no_weight_is_given_back_what_needs_one_is_refused(base: Base, folder: Path) -> None:
    with pytest.raises(TypeError, match="Merging/unmerging is not available"):  # PEFT's words
        adapted(base, folder).merge_adapter()
    model = get_peft_model(load(base, folder), GLoraConfig(r=4, local_size=0.5, target_modules=TARGETS))
    with pytest.raises(CalibrationError, match=r"is a (gptq|awq) layer, which does not give.*Use CPS-LoRA"):
        calibrate(model, [token_batch()])
    assert all(
        layer.captured_energy > 0.3
        for layer in calibrate(get_peft_model(load(base, folder), cps()), [token_batch()]).layers
    )


def test_a_4bit_weight_stays_readable_after_an_evaluation(folder: Path) -> None:
    """On processors with AVX512-BF16, bitsandbytes packs 4-bit weights anew at the first pass in eval mode."""
    base = BASES[1]
    model = adapted(base, folder)
    layer, plain = first(model), first(dequantized(model))
    before = layer.get_base_weight().clone()
    logits(model)
    assert torch.equal(layer.get_base_weight(), before)
    x = torch.randn(5, 64, requires_grad=True)
    gradients = [torch.autograd.grad(each.train()(x).sum(), x)[0] for each in (layer, plain)]
    assert difference(*gradients) < base.noise


def test_a_4bit_weight_that_was_packed_before_is_refused(folder: Path) -> None:
    model = load(BASES[1], folder).eval()
    logits(model)
    state = model.model.layers[0].self_attn.q_proj.weight.quant_state
    state.packing_format_for_cpu = True  # as on a processor with AVX512-BF16
    with pytest.raises(LayerError, match=r"q_proj was packed for inference on this CPU.*Load the model again"):
        get_peft_model(model, cps())


def test_gguf_blocks_that_were_not_unpacked_are_refused_with_the_remedy() -> None:
    class GgufLinear(nn.Module):  # as transformers calls it
        pass

    model = nn.Sequential()
    model.proj = GgufLinear()
    with pytest.raises(LayerError, match=r"proj is a GgufLinear.*Load the model with GgufConfig\(dequantize=True\)"):
        get_peft_model(model, CpsLoraConfig(target_modules=["proj"]))
