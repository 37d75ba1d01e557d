"""Creating an adapter: what is trainable, which layers it sits on, how it starts and learns."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from peft import (
    LoraConfig,
    get_peft_model,
)
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from adapted_models import adapted, differ, logits, unplaced
from localora import Partition, Placement, PlacementError, adapter_size, calibrate, placement_of
from localora.adapter.status import adapted_layers
from localora.errors import ConfigError
from method_table import BY_NAME, METHODS, Method, every_method
from tiny_models import GPT2_TARGETS, LLAMA_TARGETS, Mlp, tiny_llama, token_batch

G_LORA, CPS_LORA = BY_NAME["g-lora"], BY_NAME["cps-lora"]


@every_method
def test_only_the_adapter_is_trainable_and_costs_what_lora_costs(method: Method) -> None:
    model = adapted(method)
    lora = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=LLAMA_TARGETS))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".localized_" in name}
    ours, theirs = (m.get_nb_trainable_parameters()[0] for m in (model, lora))
    assert abs(ours - theirs) <= 0.005 * theirs
    assert len(adapted_layers(model, "default")) == 8


@every_method
def test_starts_from_the_base_model(method: Method, base_logits: Tensor) -> None:
    assert torch.equal(logits(adapted(method, init_weights=True)), base_logits)
    assert differ(logits(adapted(method)), base_logits)


@every_method
def test_training_changes_the_adapter_alone(method: Method) -> None:
    model = adapted(method, init_weights=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(**token_batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}


def test_dropout_is_a_module_that_trainers_can_switch_off_and_none_where_nothing_drops() -> None:
    models = {rate: adapted(BY_NAME["g-lora"], dropout=rate) for rate in (0.0, 0.25)}
    found = {
        rate: [module for module in model.modules() if isinstance(module, (nn.Dropout, nn.Identity))]
        for rate, model in models.items()
    }
    assert not found[0.0]
    assert {module.p for module in found[0.25]} == {0.25}


@every_method
def test_dropout_acts_in_training_only(method: Method) -> None:
    model = adapted(method, dropout=0.5)
    without = adapted(method)
    without.load_state_dict(model.state_dict())
    assert torch.equal(logits(model), logits(without))
    assert torch.equal(logits(model), logits(model))
    model.train()
    torch.manual_seed(0)
    first = logits(model)
    assert differ(first, logits(model))
    torch.manual_seed(0)
    assert torch.equal(first, logits(model))


@every_method
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(method: Method, reentrant: bool) -> None:
    plain, checkpointed = adapted(method).train(), adapted(method).train()
    checkpointed.load_state_dict(plain.state_dict())
    checkpointed.enable_input_require_grads()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for model in (plain, checkpointed):
        model(**token_batch()).loss.backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in checkpointed.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)


def test_rank_and_alpha_patterns() -> None:
    for method in METHODS:
        model = adapted(method, rank_pattern={"down_proj": 8, r".*layers\.0.*q_proj": 12}, alpha_pattern={"k_proj": 2})
        for name, layer in adapted_layers(model, "default"):
            r = 8 if "down_proj" in name else 12 if "layers.0.self_attn.q_proj" in name else 4
            budget, scale = layer.localized_layout["default"]
            assert abs(budget.parameters - r * (budget.m + budget.n)) <= 0.005 * r * (budget.m + budget.n), name
            assert scale == pytest.approx((2 if "k_proj" in name else 8) / r), name


def test_rslora_scale() -> None:
    for method in METHODS:
        ((_, layer), *_) = adapted_layers(adapted(method, use_rslora=True), "default")
        assert layer.localized_layout["default"].scale == pytest.approx(8 / 4**0.5)


@every_method
def test_excluded_modules_and_chosen_blocks(method: Method) -> None:
    def names(**options: object) -> set[str]:
        return {name for name, _ in adapted_layers(adapted(method, **options), "default")}

    def without(*parts: str) -> set[str]:
        return {name for name in names() if not any(part in name for part in parts)}

    assert names(exclude_modules=["k_proj", "gate_proj"]) == without("k_proj", "gate_proj")
    assert names(exclude_modules=r".*layers\.1\..*") == without("layers.1")
    assert names(layers_to_transform=[1]) == without("layers.0")
    assert names(layers_to_transform=0, layers_pattern="layers") == without("layers.1")


@every_method
def test_all_linear_and_default_targets(method: Method, llama: LlamaForCausalLM, gpt2: GPT2LMHeadModel) -> None:
    everything = get_peft_model(llama, method.config(target_modules="all-linear"))
    assert len(adapted_layers(everything, "default")) == 2 * 7
    default = get_peft_model(gpt2, method.config())  # PEFT's table of targets for the architecture
    assert {name.rpartition(".")[2] for name, _ in adapted_layers(default, "default")} == {"c_attn"}


def test_conv1d_delta_has_the_orientation_of_its_weight(gpt2: GPT2LMHeadModel) -> None:
    for method in METHODS:
        model = get_peft_model(copy.deepcopy(gpt2), method.config(target_modules=GPT2_TARGETS)).eval()
        before = logits(model)
        for _, layer in adapted_layers(model, "default"):
            assert layer.get_delta_weight("default").shape == layer.get_base_layer().weight.shape
        torch.testing.assert_close(logits(model.merge_and_unload()), before, rtol=1e-4, atol=1e-4)


def test_other_layers_are_refused_by_name(llama: LlamaForCausalLM) -> None:
    with pytest.raises(TypeError, match=r"layer model\.embed_tokens is a Embedding; localora adapts"):
        get_peft_model(llama, G_LORA.config(target_modules=["embed_tokens"]))


def test_attention_that_reads_its_weight_directly_is_refused() -> None:
    with pytest.raises(TypeError, match=r"layer out_proj is the output projection of a torch\.nn\.MultiheadAttention"):
        get_peft_model(nn.MultiheadAttention(8, 2), G_LORA.config(target_modules=["out_proj"], r=2))


def test_fused_mamba_kernels_are_refused() -> None:
    class Mamba(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (dict,), {"model_type": "mamba"})()
            self.out_proj = nn.Linear(4, 4)

    with pytest.raises(ValueError, match=r"out_proj.*mamba model cannot be adapted"):
        get_peft_model(Mamba(), G_LORA.config(target_modules=["out_proj"]))


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        (
            G_LORA,
            {"r": 8, "local_size": 0.25, "target_modules": ["q_proj", "k_proj"]},
            r"4 of 4 layers cannot hold.*layers\.0\.self_attn\.q_proj and 1 like it \(32 x 32\) has a block of "
            r"0\.\d+ of its rows and columns instead of 0\.25; .*k_proj and 1 like it \(16 x 32\) has a block of 0\.5 ",
        ),
        (CPS_LORA, {"clusters": 17}, r"2 of 8 layers.*k_proj and 1 like it \(16 x 32\) has 16 clusters instead of 17$"),
        (G_LORA, {"r": 40, "target_modules": ["k_proj"]}, r"2 of 2 .*\(16 x 32\) has LoRA's own factors$"),
    ],
)
def test_a_layer_too_small_gets_what_it_can_hold_and_is_named_once(
    method: Method, options: dict[str, object], told: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = adapted(method, init_weights=True, **options)
    (message,) = [str(w.message) for w in caught if "cannot hold" in str(w.message)]
    assert re.search(told, message), message
    lora = get_peft_model(
        tiny_llama(), LoraConfig(r=options.get("r", 4), target_modules=options.get("target_modules", LLAMA_TARGETS))
    )
    ours, theirs = (m.get_nb_trainable_parameters()[0] for m in (model, lora))
    assert abs(ours - theirs) <= 0.005 * theirs
    before = model(**token_batch()).loss.item()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()(**token_batch()).loss.backward()
    optimizer.step()
    assert model.eval()(**token_batch()).loss.item() < before


def test_a_rank_above_both_sides_trains_as_peft_s_lora_does() -> None:
    model = adapted(CPS_LORA, r=40, target_modules=["k_proj"])
    ((_, layer), *_) = adapted_layers(model, "default")
    assert layer.localized_layout["default"].budget.parameters == 40 * (16 + 32)
    waiting = unplaced(CPS_LORA, r=40, target_modules=["k_proj"])
    assert len(calibrate(waiting, [token_batch()]).layers) == 2


def test_no_layer_of_that_name_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"'zzz'.*called down_proj \(2\), gate_proj \(2\), k_proj \(2\), lm_h"):
        adapted(G_LORA, target_modules=["zzz"])
    with pytest.warns(UserWarning, match=r"names 'v_prj', which no layer is called.*did you mean 'v_proj'"):
        adapted(G_LORA, target_modules=["q_proj", "v_prj"])


def test_labels_that_do_not_fit_the_fixed_shapes_are_refused() -> None:
    ((_, layer), *_) = adapted_layers(adapted(G_LORA), "default")
    with pytest.raises(
        PlacementError, match=r"do not fit the adapter 'default': rows 16 instead of 32, covered columns 32"
    ):
        layer.place("default", Partition.whole(16, 32))
    with pytest.raises(PlacementError, match="covered columns 1 instead of 16"):
        layer.place("default", Partition.block(32, 32, torch.arange(16), torch.tensor([0])))
    ((_, layer), *_) = adapted_layers(adapted(METHODS[0]), "default")
    with pytest.raises(PlacementError, match="no local term on this layer, so nothing to place"):
        layer.place("default", Partition.whole(32, 32))


def test_placement_of_knows_layers_and_says_when_there_are_none(llama: LlamaForCausalLM) -> None:
    model = adapted(BY_NAME["hybrid"])
    placements = placement_of(model)
    assert len(placements) == 8
    assert placement_of(torch.nn.Sequential(model)) == {
        f"0.{name}": placement for name, placement in placements.items()
    }
    assert all(isinstance(p, Placement) and [q.clusters for q in p.partitions] == [1, 2] for p in placements.values())
    with pytest.raises(ValueError, match="no layer of this model holds a localora adapter named 'x'"):
        placement_of(llama, "x")
    with pytest.raises(ValueError, match="no layer of this model holds a localora adapter named 'x'"):
        adapter_size(llama, "x")
