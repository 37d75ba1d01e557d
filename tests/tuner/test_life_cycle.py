"""PEFT's life-cycle of an adapter, driven by the method table: one test a step, each on all five rows."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from localora import CpsLoraConfig, GlobalLocalLoraConfig, Partition, Placement, PlacementError, calibrate, placement_of
from localora.tuner.layer import LocalizedLinear
from localora.tuner.model import adapted_layers
from method_table import BY_NAME, METHODS, Method, every_method, every_placed_method
from tiny_models import GPT2_TARGETS, LLAMA_TARGETS, MLP_TARGETS, Mlp, mlp_batch, tiny_llama, token_batch

G_LORA, CPS_LORA = BY_NAME["g-lora"], BY_NAME["cps-lora"]


def adapted(method: Method, **options: object) -> PeftModel:
    return get_peft_model(tiny_llama(), method.config(target_modules=LLAMA_TARGETS, **options)).eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=token_batch()["input_ids"]).logits


@pytest.fixture
def base_logits(llama: LlamaForCausalLM) -> Tensor:
    return logits(llama.eval())


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-2)


def assert_same_placement(a: nn.Module, b: nn.Module) -> None:
    def placements(model: nn.Module) -> dict[str, Placement]:
        return {name.removeprefix("base_model.model."): placed for name, placed in placement_of(model).items()}

    assert placements(a) == placements(b)


# Creation


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


# Which layers, which rank


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


def test_fused_mamba_kernels_are_refused() -> None:
    class Mamba(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (dict,), {"model_type": "mamba"})()
            self.out_proj = nn.Linear(4, 4)

    with pytest.raises(ValueError, match=r"out_proj.*mamba model cannot be adapted"):
        get_peft_model(Mamba(), G_LORA.config(target_modules=["out_proj"]))


def test_a_rank_that_does_not_fit_names_the_layer(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"layer model\.layers\.0\.self_attn\.k_proj: rank r=17 does not fit a 16 x"):
        get_peft_model(llama, CPS_LORA.config(target_modules=["k_proj"], r=17))
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.k_proj: 17 clusters do not fit a 16 x 32 matrix"):
        get_peft_model(tiny_llama(), CPS_LORA.config(target_modules=["k_proj"], clusters=17))


# Merging


@every_method
@pytest.mark.parametrize("safe", [False, True])
def test_merge_and_unmerge(method: Method, safe: bool, base_logits: Tensor) -> None:
    model = adapted(method)
    with_adapter = logits(model)
    weights = {name: layer.get_base_layer().weight.clone() for name, layer in adapted_layers(model, "default")}
    model.merge_adapter(safe_merge=safe)
    for name, layer in adapted_layers(model, "default"):
        assert layer.merged
        torch.testing.assert_close(layer.base_layer.weight, weights[name] + layer.get_delta_weight("default"))
    torch.testing.assert_close(logits(model), with_adapter, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), base_logits, rtol=1e-4, atol=1e-4)
    model.merge_adapter(safe_merge=safe)
    model.unmerge_adapter()
    for name, layer in adapted_layers(model, "default"):
        torch.testing.assert_close(layer.base_layer.weight, weights[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(model), with_adapter, rtol=1e-4, atol=1e-4)


def test_merging_twice_and_unmerging_nothing_warn() -> None:
    model = adapted(G_LORA)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    model.merge_adapter()
    merged = logits(model)
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        model.merge_adapter()
    assert torch.equal(logits(model), merged)


@every_method
def test_merge_and_unload_is_the_plain_model(method: Method) -> None:
    model = adapted(method)
    with_adapter = logits(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert isinstance(merged, LlamaForCausalLM)
    assert not any(isinstance(module, LocalizedLinear) for module in merged.modules())
    torch.testing.assert_close(logits(merged), with_adapter, rtol=1e-4, atol=1e-4)


@every_method
def test_unload_gives_the_base_model_back(method: Method, base_logits: Tensor) -> None:
    assert torch.equal(logits(adapted(method).unload()), base_logits)


@every_method
def test_safe_merge_refuses_nan_and_leaves_the_weight(method: Method) -> None:
    model = adapted(method)
    _name, layer = adapted_layers(model, "default")[0]
    before = layer.get_base_layer().weight.clone()
    parameter = next(p for n, p in layer.named_parameters() if "localized_" in n and "_B" in n)
    parameter.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in the merged weights: the adapter 'default'"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before)
    assert not layer.merged
    with pytest.raises(ValueError, match="NaN or infinity"):
        model.merge_and_unload(safe_merge=True)


def test_merging_in_bfloat16_rounds_once() -> None:
    for method in METHODS:
        model = get_peft_model(tiny_llama().bfloat16(), method.config(target_modules=LLAMA_TARGETS)).eval()
        _name, layer = adapted_layers(model, "default")[0]
        expected = (layer.base_layer.weight.float() + layer.get_delta_weight("default").float()).bfloat16()
        model.merge_adapter()
        assert torch.equal(layer.base_layer.weight, expected)


# Several adapters


@every_method
def test_several_adapters(method: Method, base_logits: Tensor) -> None:
    model = adapted(method)
    first = logits(model)
    model.add_adapter("second", method.config(target_modules=["q_proj"], r=8, seed=1))
    assert torch.equal(logits(model), first)  # added, not active
    assert all(("second" in n) is not p.requires_grad for n, p in model.named_parameters() if "localized_" in n)

    model.set_adapter("second")
    second = logits(model)
    assert differ(second, first)
    assert differ(second, base_logits)
    assert all(("second" in n) is p.requires_grad for n, p in model.named_parameters() if "localized_" in n)
    with model.disable_adapter():
        assert torch.equal(logits(model), base_logits)
    assert torch.equal(logits(model), second)

    both = copy.deepcopy(model)
    both.base_model.set_adapter(["default", "second"])
    together = logits(both)
    assert differ(together, first)
    assert differ(together, second)
    torch.testing.assert_close(logits(both.merge_and_unload()), together, rtol=1e-3, atol=1e-3)

    model.delete_adapter("default")
    assert torch.equal(logits(model), second)
    assert not any("default" in name for name in model.state_dict())
    for _, layer in adapted_layers(model, "second"):
        assert list(layer.localized_layout) == list(layer.localized_verified) == ["second"]
    assert not adapted_layers(model, "default")


def test_g_lora_and_cps_lora_in_one_model(tmp_path: Path) -> None:
    model = adapted(G_LORA)
    g_lora = logits(model)
    model.add_adapter("cps", CPS_LORA.config(target_modules=["q_proj", "up_proj"]))
    model.add_adapter("lora", METHODS[0].config(target_modules=["q_proj"]))
    model.set_adapter("cps")
    cps = logits(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), g_lora)
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    back.load_adapter(tmp_path / "cps", "cps")
    back.load_adapter(tmp_path / "lora", "lora")
    assert isinstance(back.peft_config["default"], GlobalLocalLoraConfig)
    assert isinstance(back.peft_config["cps"], CpsLoraConfig)
    torch.testing.assert_close(logits(back.eval()), g_lora)
    back.set_adapter("cps")
    torch.testing.assert_close(logits(back), cps)
    for name in ("default", "cps", "lora"):
        assert placement_of(back, name) == placement_of(model, name)


def test_a_copy_on_the_same_config_object_takes_over_the_labels() -> None:
    """TRL's reference adapter: the same config object, parameters copied, buffers not."""
    model = adapted(CPS_LORA, placement="calibrate")
    calibrate(model, [token_batch()])
    model.add_adapter("ref", model.peft_config["default"])
    assert placement_of(model, "ref") == placement_of(model, "default")


def test_such_a_copy_takes_over_what_a_re_partition_left_behind() -> None:
    model = adapted(CPS_LORA)
    for _, layer in adapted_layers(model, "default"):
        layer.set_carry("default", torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2))
    model.peft_config["default"].carry_rank = 2
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in list(model.named_parameters()):
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    expected = logits(model)
    for _, layer in adapted_layers(model, "default"):
        layer.localized_carry_A["default"].zero_()  # the policy's next move must not change its reference
    model.set_adapter("ref")
    assert torch.equal(logits(model), expected)


def test_labels_that_do_not_fit_the_fixed_shapes_are_refused() -> None:
    ((_, layer), *_) = adapted_layers(adapted(G_LORA), "default")
    with pytest.raises(PlacementError, match=r"do not fit the adapter 'default': rows 16 instead of 32, covered columns 32"):
        layer.place("default", Partition.whole(16, 32))
    with pytest.raises(PlacementError, match="covered columns 1 instead of 16"):
        layer.place("default", Partition.block(32, 32, torch.arange(16), torch.tensor([0])))
    ((_, layer), *_) = adapted_layers(adapted(METHODS[0]), "default")
    with pytest.raises(PlacementError, match="no local term on this layer, so nothing to place"):
        layer.place("default", Partition.whole(32, 32))


@every_method
def test_peft_s_own_conversion_to_lora(method: Method) -> None:
    model = adapted(method)
    rank = max(layer.dense_factors("default")[0].shape[0] for _, layer in adapted_layers(model, "default"))
    config, state = convert_to_lora(model, rank=rank)
    lora = get_peft_model(tiny_llama(), config).eval()
    set_peft_model_state_dict(lora, state)
    torch.testing.assert_close(logits(lora), logits(model), rtol=1e-3, atol=1e-4)


def test_mixed_models_and_mixed_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"(?s)not compatible.*LOCALIZED|LOCALIZED.*not compatible|not supported"):
        get_peft_model(tiny_llama(), G_LORA.config(target_modules=LLAMA_TARGETS), mixed=True)
    model = adapted(G_LORA)
    model.add_adapter("other", CPS_LORA.config(target_modules=LLAMA_TARGETS))
    with pytest.raises(ValueError, match=r"several adapters in one batch.*export_lora"):
        model(input_ids=torch.ones(2, 4, dtype=torch.long), adapter_names=["default", "other"])
    with pytest.raises(ValueError, match="several adapters in one batch"):
        model.generate(input_ids=torch.ones(2, 4, dtype=torch.long), adapter_names=["default", "other"])


# Files


@every_method
def test_save_and_load(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    model.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert type(config) is type(model.peft_config["default"])
    assert config.placement == "random"
    back = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert torch.equal(logits(back), logits(model))
    assert_same_placement(back, model)
    assert not any(p.requires_grad for p in back.parameters())
    trainable = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    assert {n for n, p in trainable.named_parameters() if p.requires_grad} == {
        n for n, _ in trainable.named_parameters() if "localized_" in n
    }


@every_placed_method
def test_loading_over_another_placement_replaces_it(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    model.save_pretrained(tmp_path)
    other = adapted(method, seed=7)
    logits(other)  # its labels have been used and verified
    assert placement_of(other) != placement_of(model)
    other.load_adapter(tmp_path, "default")
    assert_same_placement(other, model)
    assert torch.equal(logits(other), logits(model))


@every_method
def test_low_cpu_mem_usage(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(tiny_llama(), tmp_path, low_cpu_mem_usage=True).eval()
    assert all(tensor.device.type == "cpu" for tensor in back.state_dict().values())
    assert torch.equal(logits(back), logits(model))
    assert_same_placement(back, model)


@every_method
def test_modules_to_save(method: Method, tmp_path: Path) -> None:
    model = adapted(method, modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"].weight
    assert head.requires_grad
    head.data.mul_(-1.5)
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert torch.equal(back.base_model.model.lm_head.modules_to_save["default"].weight, head)
    assert torch.equal(logits(back), logits(model))
    torch.testing.assert_close(logits(back.merge_and_unload()), logits(model), rtol=1e-4, atol=1e-4)


@every_method
def test_state_dict_holds_factors_and_labels_and_nothing_else(method: Method) -> None:
    model = adapted(method)
    state = get_peft_model_state_dict(model)
    kinds = {key.rpartition(".localized_")[2] for key in state}
    glob = {"global_A.weight", "global_B.weight"}
    local = {"local_A.weight", "local_B.weight", "row_labels", "col_labels"}
    expected = {"lora-by-share": glob, "lora-by-clusters": local, "cps-lora": local}.get(method.name, glob | local)
    assert kinds == expected
    assert all(value.dtype == (torch.int8 if "labels" in key else torch.float32) for key, value in state.items())


@every_method
def test_injection_and_its_state_dict(method: Method) -> None:
    model = inject_adapter_in_model(method.config(target_modules=LLAMA_TARGETS), tiny_llama()).eval()
    state = get_peft_model_state_dict(model)
    other = inject_adapter_in_model(method.config(target_modules=LLAMA_TARGETS, seed=3), tiny_llama()).eval()
    result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "localized_" in key]
    assert torch.equal(logits(other), logits(model))
    assert_same_placement(other, model)
    low = inject_adapter_in_model(method.config(target_modules=LLAMA_TARGETS), tiny_llama(), low_cpu_mem_usage=True)
    set_peft_model_state_dict(low, state, low_cpu_mem_usage=True)
    assert torch.equal(logits(low.eval()), logits(model))


@every_method
def test_transformers_load_adapter(method: Method, tmp_path: Path) -> None:
    model = adapted(method)
    model.save_pretrained(tmp_path)
    back = tiny_llama()
    back.load_adapter(str(tmp_path))
    assert torch.equal(logits(back.eval()), logits(model))
    assert_same_placement(back, model)


def test_transformers_add_adapter() -> None:
    model = tiny_llama()
    try:
        model.add_adapter(G_LORA.config(target_modules=LLAMA_TARGETS))
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"transformers' add_adapter needs a newer PEFT, for every method: {error}")
    assert len(adapted_layers(model, "default")) == 8


# Precision


@every_method
@pytest.mark.parametrize("autocast", [True, False])
def test_adapter_dtype_on_a_bfloat16_base(method: Method, autocast: bool, tmp_path: Path) -> None:
    config = method.config(target_modules=LLAMA_TARGETS)
    model = get_peft_model(tiny_llama().bfloat16(), config, autocast_adapter_dtype=autocast)
    wanted = torch.float32 if autocast else torch.bfloat16
    for name, tensor in model.state_dict().items():
        if "labels" in name:
            assert tensor.dtype == torch.int8
        elif "localized_" in name:
            assert tensor.dtype == wanted, name
    output = model(**token_batch())
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == wanted and torch.isfinite(g).all() for g in gradients)
    # The same adapter in float32 throughout, on the same (rounded) base weights, is near.
    exact = get_peft_model(tiny_llama().bfloat16().float(), config)
    exact.load_state_dict(model.state_dict())
    error = (output.logits.float() - exact(**token_batch()).logits).norm() / output.logits.float().norm()
    assert error < 0.05
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(tiny_llama().bfloat16(), tmp_path, autocast_adapter_dtype=autocast)
    assert torch.equal(logits(back.eval()), logits(model.eval()))


@every_method
def test_forward_and_backward_under_autocast(method: Method) -> None:
    model = adapted(method).train()
    exact = model(**token_batch()).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**token_batch())
    output.loss.backward()
    assert (output.logits.float() - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


# Compilation and copies


@every_method
def test_compiles_into_one_graph(method: Method) -> None:
    model = get_peft_model(Mlp(), method.config(target_modules=MLP_TARGETS))
    batch = mlp_batch()
    expected = model(**batch)["loss"]
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss = compiled(**batch)["loss"]
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name])


@every_method
def test_models_and_configs_can_be_copied(method: Method) -> None:
    config = method.config(target_modules=LLAMA_TARGETS, rank_pattern={"q_proj": 8})
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(twin) is type(config)
        assert twin.to_dict() == config.to_dict()
    model = adapted(method)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    next(p for p in twin.parameters() if p.requires_grad).data.fill_(9)
    assert differ(logits(twin), logits(model))


@every_method
def test_status_and_summary_know_the_adapter(method: Method) -> None:
    model = adapted(method)
    status = model.get_model_status()
    assert (status.peft_types, status.num_adapter_layers, status.enabled) == ({"default": "LOCALIZED"}, 8, True)
    assert status.trainable_params == model.get_nb_trainable_parameters()[0]
    assert "localized.LocalizedLinear" in repr(model)
    assert "adapters=['default']" in repr(model)


@every_method
def test_generates(method: Method) -> None:
    model = adapted(method)
    prompt = token_batch()["input_ids"]
    ours = model.generate(input_ids=prompt, max_new_tokens=5, do_sample=False)
    merged = model.merge_and_unload().generate(input_ids=prompt, max_new_tokens=5, do_sample=False)
    assert ours.shape[1] > prompt.shape[1]
    assert torch.equal(ours, merged)


def test_placement_of_knows_layers_and_says_when_there_are_none(llama: LlamaForCausalLM) -> None:
    placements = placement_of(adapted(BY_NAME["hybrid"]))
    assert len(placements) == 8
    assert all(isinstance(p, Placement) and [q.clusters for q in p.partitions] == [1, 2] for p in placements.values())
    with pytest.raises(ValueError, match="no layer of this model holds a localora adapter named 'x'"):
        placement_of(llama, "x")
