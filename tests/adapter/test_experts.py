"""Adapters on stacked experts, against dense weights: an update of its own for each expert."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model
from torch import Tensor, nn

from adapted_models import assert_same_placement, differ, logits
from localora import CpsLoraConfig, GLoraConfig, Repartitioner, adapter_size, calibrate, export_lora, placement_of
from localora.adapter.experts import LocalizedExperts
from localora.adapter.layer import LocalizedLinear
from localora.adapter.status import adapted_layers
from localora.errors import AdapterError, ConfigError, LayerError
from localora.placement.taylor import plan_block
from method_table import BY_NAME, Method, every_method
from tiny_experts import EXPERTS, KINDS, LAYERS, STACKS, tiny_experts
from tiny_models import token_batch

CPS, G = BY_NAME["cps-lora"], BY_NAME["g-lora"]
every_kind = pytest.mark.parametrize("kind", KINDS)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def adapted(method: Method = CPS, kind: str = "mixtral", **options: Any) -> PeftModel:
    """On experts alone unless told, placed at random, with a non-zero update."""
    settings = {"target_modules": [], "target_parameters": STACKS, **options}
    return get_peft_model(tiny_experts(kind), method.config(**settings)).eval()


def experts_of(model: nn.Module) -> dict[str, LocalizedExperts]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LocalizedExperts)}


def dense_update(layer: LocalizedLinear, name: str = "default") -> Tensor:
    """dW by its definition: of each term s B A, the entries whose row and column have the same label."""
    budget, scale = layer.localized_layout[name]
    update = torch.zeros(budget.m, budget.n)
    if budget.global_rank:
        update = update + layer.localized_global_B[name].weight @ layer.localized_global_A[name].weight
    if budget.local:
        rows, cols = layer.localized_row_labels[name], layer.localized_col_labels[name]
        B, A = layer.localized_local_B[name].weight, layer.localized_local_A[name].weight
        local = B[(rows >= 0).cumsum(0).sub(1).clamp(min=0)] @ A[:, (cols >= 0).cumsum(0).sub(1).clamp(min=0)]
        update = update + local * ((rows[:, None] == cols[None, :]) & (rows[:, None] >= 0))
    return scale * update


def dense_weights(model: PeftModel) -> dict[str, Tensor]:
    """The stacks with every expert's update in them, by their names in the base model."""
    weights = {}
    for name, experts in experts_of(model.get_base_model()).items():
        for parameter in experts.localized_stacks:
            stack = getattr(experts.base_layer, parameter)
            updates = torch.stack([dense_update(layer) for layer in experts.layers_of(parameter)])
            transposed = getattr(experts.base_layer, "is_transposed", False)
            weights[f"{name}.{parameter}"] = stack + (updates.transpose(1, 2) if transposed else updates)
    return weights


def loss_with(base: nn.Module, weights: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    return torch.func.functional_call(base, weights, kwargs=batch).loss


@every_kind
@every_method
def test_output_and_gradients_are_those_of_dense_weights(method: Method, kind: str) -> None:
    model = adapted(method, kind).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = model(**token_batch()).loss
    expected = loss_with(tiny_experts(kind), dense_weights(model), token_batch())
    untouched = tiny_experts(kind)(**token_batch()).loss
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert abs(found - untouched) > 1e-2
    pairs = zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for gradient, dense in pairs:
        torch.testing.assert_close(gradient, dense, **TOLERANCE)


@every_kind
def test_it_trains_what_lora_of_the_same_rank_trains(kind: str) -> None:
    lora = get_peft_model(tiny_experts(kind), LoraConfig(r=4, target_modules=[], target_parameters=STACKS))
    of_lora = sum(p.numel() for p in lora.parameters() if p.requires_grad)
    for method in (CPS, G):
        model = adapted(method, kind)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained == pytest.approx(of_lora, rel=0.02)  # a matrix of 32 x 24 is small for half a per cent
        assert adapter_size(model).trainable == trained
        assert len(adapted_layers(model, "default")) == LAYERS * EXPERTS * len(STACKS)


@every_kind
def test_each_expert_is_placed_by_the_gradient_of_its_own_matrix(kind: str) -> None:
    model = adapted(G, kind, placement="calibrate", init_weights=True)
    batches = [token_batch(seed, examples=6) for seed in range(2)]
    report = calibrate(model, batches)
    assert not any(layer.at_random for layer in report.layers)
    base = tiny_experts(kind)
    scores: dict[str, Tensor] = {}
    stacks = {name: p for name, p in base.named_parameters() if name.endswith(tuple(STACKS))}
    for batch in batches:
        gradients = torch.autograd.grad(base(**batch).loss, list(stacks.values()))
        for (name, W), gradient in zip(stacks.items(), gradients, strict=True):
            importance = (W.detach() * gradient).abs()
            importance = importance.transpose(1, 2) if kind == "gpt-oss" else importance
            scores[name] = scores.get(name, 0) + importance
    for name, layer in adapted_layers(model.get_base_model(), "default"):
        stack, _, index = name.rpartition(".")
        local = layer.localized_layout["default"].budget.local
        importance = scores[stack][int(index)].double()
        expected = plan_block(importance.sum(1), importance.sum(0), local.rows, local.cols)
        assert layer.local_partition("default") == expected, name


@pytest.mark.parametrize("method", [CPS, G], ids=lambda method: method.name)
def test_experts_without_a_token_are_placed_at_random_and_named(method: Method) -> None:
    model = adapted(method, placement="calibrate", init_weights=True)
    for module in model.modules():
        if type(module).__name__ == "MixtralTopKRouter":
            module.register_forward_hook(lambda _, __, out: (*out[:2], torch.where(out[2] == 3, 0, out[2])))
    with pytest.warns(UserWarning, match=r"zero in 4 of 16 adapted layers, .*experts\.gate_up_proj\.3 among them"):
        report = calibrate(model, [token_batch(seed, examples=6) for seed in range(2)])
    drawn = [layer.name for layer in report.layers if layer.at_random]
    assert len(drawn) == 4
    assert all(name.endswith(".3") for name in drawn)
    assert re.search(r"placed at random, without a gradient: 4, .*experts\.gate_up_proj\.3", str(report))
    assert min(layer.held for layer in report.found) > 0
    first, second = (placement_of(model)[name].partitions[-1] for name in drawn[::2])
    assert first != second  # another place each


@every_kind
def test_saved_and_loaded_it_computes_the_same(kind: str, tmp_path: Path) -> None:
    model = adapted(kind=kind, target_modules=["q_proj"])
    model.save_pretrained(tmp_path)
    for lean in (False, True):
        loaded = PeftModel.from_pretrained(tiny_experts(kind), tmp_path, low_cpu_mem_usage=lean).eval()
        assert torch.equal(logits(loaded), logits(model))
        assert_same_placement(loaded, model)
    assert differ(logits(model), logits(tiny_experts(kind).eval()))


@every_kind
def test_merging_adds_each_update_to_its_expert_and_unmerging_takes_it_away(kind: str) -> None:
    model = adapted(kind=kind)
    base, expected = tiny_experts(kind), dense_weights(model)
    before = logits(model)
    model.merge_adapter()
    merged = dict(model.get_base_model().named_parameters())
    for name, weight in expected.items():
        module, _, parameter = name.rpartition(".")
        torch.testing.assert_close(merged[f"{module}.base_layer.{parameter}"], weight, **TOLERANCE)
    torch.testing.assert_close(logits(model), before, **TOLERANCE)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), before, **TOLERANCE)
    plain = model.merge_and_unload()
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in base.named_parameters()]
    torch.testing.assert_close(logits(plain), before, **TOLERANCE)


@every_kind
@pytest.mark.parametrize("stacks", [STACKS, STACKS[::-1], STACKS[1:]], ids=["both", "reversed", "down"])
@pytest.mark.filterwarnings("ignore:the adapter has updates of stacked experts")
def test_the_export_is_what_stock_lora_loads(kind: str, stacks: list[str], tmp_path: Path) -> None:
    model = adapted(kind=kind, target_parameters=stacks, target_modules=["q_proj"])
    report = export_lora(model, tmp_path / "lora")
    assert report.max_error < 1e-6
    lora = PeftModel.from_pretrained(tiny_experts(kind), tmp_path / "lora").eval()
    assert type(lora.peft_config["default"]) is LoraConfig
    torch.testing.assert_close(logits(lora), logits(model), **TOLERANCE)
    model.save_pretrained(tmp_path / "adapter")
    export_lora(tmp_path / "adapter", tmp_path / "from-folder")
    again = PeftModel.from_pretrained(tiny_experts(kind), tmp_path / "from-folder").eval()
    assert torch.equal(logits(again), logits(lora))


def test_an_export_of_experts_says_that_engines_were_not_tried(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="serving engines were not tried"):
        export_lora(adapted(), tmp_path / "lora")


@pytest.mark.parametrize("frozen", ["factors", "merged"])
@pytest.mark.parametrize("place", ["found", "random"])
def test_an_event_keeps_the_function_and_starts_anew(frozen: str, place: str, tmp_path: Path) -> None:
    model = adapted(frozen=frozen, repartition=[0.5], repartition_place=place)
    batches = [token_batch(seed, examples=6) for seed in range(2)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    events, before, labels = Repartitioner(model, optimizer, 2, batches), logits(model), placement_of(model)
    event = events.step()
    assert event is not None
    torch.testing.assert_close(logits(model), before, **TOLERANCE)
    assert event.frozen_rank > 0
    assert placement_of(model) != labels
    for _, layer in adapted_layers(model, "default"):
        assert not layer.live_factors("default")[1].any()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_experts("mixtral"), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), before, **TOLERANCE)


def test_it_learns_with_gradient_checkpointing_what_it_learns_without() -> None:
    def trained(checkpointing: bool) -> Tensor:
        model = adapted().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for step in range(3):
            model(**token_batch(step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return logits(model.eval())

    torch.testing.assert_close(trained(True), trained(False), **TOLERANCE)


def test_several_adapters_act_one_at_a_time_and_none_when_disabled() -> None:
    model = adapted(seed=0)
    first = logits(model)
    torch.manual_seed(7)
    model.add_adapter("second", G.config(target_modules=[], target_parameters=STACKS[:1]))
    torch.testing.assert_close(logits(model), first)
    model.set_adapter("second")
    assert differ(logits(model), first)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(tiny_experts("mixtral").eval()))
    model.set_adapter("default")
    model.delete_adapter("second")
    torch.testing.assert_close(logits(model), first)


def test_patterns_name_a_stack_as_in_lora() -> None:
    with pytest.warns(RuntimeWarning, match="rank_pattern"):  # PEFT looks for linear layers of that name
        model = adapted(rank_pattern={"gate_up_proj": 2})
    ranks = {
        name.split(".")[-2]: layer.localized_layout["default"].budget
        for name, layer in adapted_layers(model, "default")
    }
    assert ranks["gate_up_proj"].parameters == pytest.approx(2 * (48 + 32), rel=0.02)
    assert ranks["down_proj"].parameters == pytest.approx(4 * (32 + 24), rel=0.02)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="dropout must be 0 with target_parameters"):
        CPS.config(dropout=0.1, target_parameters=STACKS)
    for wrong in ("experts.gate_proj", "q_proj.weight"):
        with pytest.raises(
            ConfigError, match=rf"'{wrong}', which fits no stacked.*called experts\.down_proj, experts\.g"
        ):
            adapted(target_parameters=[*STACKS, wrong])
    model = tiny_experts("mixtral")
    model.model.layers[1].mlp.experts.down_proj = nn.Parameter(
        model.model.layers[1].mlp.experts.down_proj.to(torch.float8_e4m3fn), requires_grad=False
    )
    with pytest.raises(
        LayerError, match=r"layers\.1\.mlp\.experts\.down_proj is torch\.float8_e4m3fn.*not be quantized"
    ):
        get_peft_model(model, CPS.config(target_modules=[], target_parameters=STACKS))
    sharded = tiny_experts("mixtral")
    sharded.model.layers[1].mlp.experts.down_proj.ds_shape = (4, 32, 24)  # as ZeRO-3 marks what it took apart
    with pytest.raises(LayerError, match=r"layers\.1\.mlp\.experts\.down_proj is sharded over processes"):
        get_peft_model(sharded, CPS.config(target_modules=[], target_parameters=STACKS))
    with pytest.raises(AdapterError, match="adapter_names cannot be used with adapters on experts"):
        adapted()(**token_batch(), adapter_names=["default"] * 3)


@pytest.mark.parametrize(
    "config", [CpsLoraConfig(target_modules="all-linear"), GLoraConfig(target_modules="all-linear")]
)
def test_all_linear_says_which_experts_it_leaves_out(config: Any) -> None:
    config.r = 2
    remedy = re.escape("target_parameters=['experts.down_proj', 'experts.gate_up_proj']")
    with pytest.warns(
        UserWarning, match=rf"layers\.0\.mlp\.experts\.gate_up_proj \(4 x 48 x 32\) and 3 more .*{remedy}"
    ):
        get_peft_model(tiny_experts("mixtral"), config)


@pytest.mark.filterwarnings("error:.*all-linear")
def test_all_linear_is_silent_where_nothing_is_left_out() -> None:
    adapted(target_modules="all-linear")


def test_peft_s_own_conversion_is_refused() -> None:
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(adapted(), rank=4)
