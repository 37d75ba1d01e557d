"""calibrate: finds what was planted, touches nothing but the labels, and names what is wrong with its input."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from adapted_models import unplaced
from localora import CalibrationError, CpsLoraConfig, GLoraConfig, calibrate, placement_of
from localora.adapter.status import adapted_layers
from method_table import BY_NAME, Method, every_placed_method
from tiny_models import LLAMA_TARGETS, MLP_TARGETS, Mlp, mlp_batch, tiny_gpt2, tiny_llama, token_batch

G_LORA, CPS_LORA = BY_NAME["g-lora"], BY_NAME["cps-lora"]


def batches(count: int = 2) -> list[dict[str, Tensor]]:
    return [token_batch(seed) for seed in range(count)]


# The report and what it leaves behind


@every_placed_method
def test_places_every_layer_and_reports_it(method: Method) -> None:
    model = unplaced(method)
    seen: list[tuple[int, int]] = []
    report = calibrate(model, iter(batches(4)), steps=3, progress=lambda done, total: seen.append((done, total)))
    layers = dict(adapted_layers(model, "default"))
    assert report.method == method.config().method
    assert [layer.name for layer in report.layers] == list(layers)
    assert report.batches == 3
    assert report.seconds > 0
    with torch.no_grad():
        expected = sum(model(**batch).loss.item() for batch in batches(3)) / 3
    assert report.loss == pytest.approx(expected, rel=1e-5)
    for entry in report.layers:
        assert entry.partition == layers[entry.name].local_partition("default")
        if method.name == "g-lora":
            assert 0 < entry.importance_share < 1
            assert entry.captured_energy is entry.subspace_correlation is None
        else:
            assert entry.importance_share is None
            assert 0 < entry.captured_energy <= 1
            assert 0 <= entry.subspace_correlation <= 1
            assert all(size > 0 for size in entry.partition.row_sizes + entry.partition.col_sizes)
    passes = 3 + (method.name == "g-lora")
    assert seen == [(done, passes) for done in range(1, passes + 1)]
    first = report.to_dict()["layers"][0]
    assert first["shape"] == [32, 32]
    assert sum(first["row_sizes"]) == report.layers[0].partition.covered_rows
    model.train()
    model(**token_batch()).loss.backward()


def test_the_share_inside_a_block_is_that_of_the_last_batch() -> None:
    config = G_LORA.config(target_modules=MLP_TARGETS, placement="calibrate", init_weights=True)
    report = calibrate(get_peft_model(Mlp(), config), [mlp_batch(seed=1), mlp_batch(seed=2)])
    plain = Mlp()
    plain(**mlp_batch(seed=2))["loss"].backward()
    for found, name in zip(report.layers, MLP_TARGETS, strict=True):
        weight = plain.get_submodule(name).weight
        assert weight.grad is not None
        importance = (weight.detach() * weight.grad).abs()
        inside = importance[found.partition.mask()].sum() / importance.sum()
        assert found.importance_share == pytest.approx(float(inside), rel=1e-4)


@every_placed_method
@pytest.mark.parametrize("training", [False, True])
def test_touches_nothing_but_the_labels(method: Method, training: bool) -> None:
    model = unplaced(method, modules_to_save=["lm_head"])
    model.train(training)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    grads = {name: torch.full_like(p, 3.0) for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.grad = grads.get(name)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    calibrate(model, batches())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    for name, parameter in model.named_parameters():
        assert parameter.grad is grads.get(name)
        if name in grads:
            assert (parameter.grad == 3).all()
        elif ".base_layer." in name:
            assert not parameter.requires_grad
            assert parameter.grad is None
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == {name for name in state if name.endswith("_labels.default")}
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert model.training is training
    assert not any(layer.calibrating for _, layer in adapted_layers(model, "default"))


# What it finds


@every_placed_method
@pytest.mark.parametrize("variant", ["checkpointing", "checkpointing-reentrant", "padded", "split"])
def test_the_same_signal_gives_the_same_placement(method: Method, variant: str) -> None:
    plain = unplaced(method).double()
    expected = calibrate(plain, batches())
    model = unplaced(method).double()
    data = batches()
    if variant.startswith("checkpointing"):
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": variant.endswith("reentrant")})
    elif variant == "padded":
        data = [{key: padded(key, value) for key, value in batch.items()} for batch in data]
    elif variant == "split":  # for one example a batch, the sum over batches is the sum over examples
        plain, model = unplaced(method).double(), unplaced(method).double()
        three = token_batch(0)
        data = [{key: value[i : i + 1] for key, value in three.items()} for i in range(3)]
        expected = calibrate(plain, [data[2], data[0], data[1]])
    report = calibrate(model, data)
    assert [layer.partition for layer in report.layers] == [layer.partition for layer in expected.layers]
    assert report.loss == pytest.approx(expected.loss)


def padded(key: str, tensor: Tensor) -> Tensor:
    padding = tensor.new_full((tensor.shape[0], 4), {"input_ids": 0, "attention_mask": 0, "labels": -100}[key])
    return torch.cat([tensor, padding], dim=1)


def planted_regression(rows: Tensor, cols: Tensor) -> tuple[nn.Module, dict[str, Tensor]]:
    """A layer whose target differs from its output on `rows`, and whose inputs are large on `cols`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40))
    x = torch.randn(64, 24) * 0.05
    x[:, cols] *= 40
    with torch.no_grad():
        model[0].weight.copy_(torch.sign(torch.randn(40, 24)))
        target = model(x) + 0.01 * torch.randn(64, 40)
        target[:, rows] += 2 * torch.randn(64, len(rows))
    return model, {"x": x, "target": target}


def regression_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (model(batch["x"]) - batch["target"]).square().mean()


@pytest.mark.parametrize("bf16", [False, True])
def test_the_planted_important_block_is_found(bf16: bool) -> None:
    rows, cols = torch.tensor([1, 5, 6, 17, 22, 23, 30, 31, 38, 39]), torch.tensor([0, 3, 9, 14, 15, 20])
    base, batch = planted_regression(rows, cols)
    config = GLoraConfig(r=2, local_size=0.25, target_modules=["0"])
    model = get_peft_model(base, config)
    seen: list[tuple[int, int]] = []
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        report = calibrate(model, [batch], loss_fn=regression_loss, progress=lambda *pair: seen.append(pair))
    block = report.layers[0].partition
    assert block.row_labels.nonzero().numel() == 40 - len(rows)
    assert torch.equal((block.row_labels == 0).nonzero().flatten(), rows)
    assert torch.equal((block.col_labels == 0).nonzero().flatten(), cols)
    assert report.layers[0].importance_share > 0.9
    assert seen[-1] == (2, 2)


@pytest.mark.parametrize("bf16", [False, True])
def test_planted_clusters_are_found(bf16: bool) -> None:
    """Inputs of a batch are non-zero on one cluster's columns and its targets off on that cluster's rows alone."""
    generator = torch.Generator().manual_seed(1)
    row_labels, col_labels = (torch.randint(3, (size,), generator=generator) for size in (40, 24))
    data = []
    for k in range(3):
        x = torch.randn(32, 24, generator=generator) * (col_labels == k)
        data.append({"x": x, "target": 3 * torch.randn(32, 40, generator=generator) * (row_labels == k)})
    base = nn.Sequential(nn.Linear(24, 40, bias=False))
    base[0].weight.data.zero_()
    model = get_peft_model(base, CpsLoraConfig(r=4, clusters=3, balance=0.0, target_modules=["0"]))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        report = calibrate(model, data, loss_fn=regression_loss)
    partition = report.layers[0].partition
    found = torch.cat([partition.row_labels, partition.col_labels])
    assert adjusted_rand_score(torch.cat([row_labels, col_labels]), found) == 1
    assert report.layers[0].subspace_correlation < 1e-3


def test_conv1d_is_placed_by_rows_and_columns_of_the_transposed_weight() -> None:
    """GPT-2's c_attn has 96 outputs and 32 inputs: scores of the oracle W.T * W.T.grad."""
    plain = tiny_gpt2().double()
    plain(**token_batch()).loss.backward()
    weight = plain.transformer.h[0].attn.c_attn.weight
    importance = (weight * weight.grad).abs().T
    model = unplaced(G_LORA, tiny_gpt2(), target_modules=["c_attn"]).double()
    block = calibrate(model, [token_batch()]).layers[0].partition
    assert (block.m, block.n) == (96, 32)
    top = importance.sum(1).topk(block.covered_rows).indices
    assert torch.equal((block.row_labels == 0).nonzero().flatten(), top.sort().values)


# Which adapter


@every_placed_method
def test_injected_adapters_can_be_calibrated(method: Method) -> None:
    config = method.config(target_modules=LLAMA_TARGETS, placement="calibrate")
    model = inject_adapter_in_model(config, tiny_llama())
    assert len(calibrate(model, batches()).layers) == 8
    config = method.config(target_modules=MLP_TARGETS, placement="calibrate")
    assert len(calibrate(inject_adapter_in_model(config, Mlp()), [mlp_batch()]).layers) == 2


def test_an_adapter_is_chosen_by_name() -> None:
    model = unplaced(G_LORA)
    model.add_adapter("cps", CPS_LORA.config(target_modules=["q_proj"], placement="calibrate"))
    report = calibrate(model, batches(), adapter_name="cps")
    assert (report.method, len(report.layers)) == ("cps-lora", 2)
    assert all(layer.is_unplaced("default") for _, layer in adapted_layers(model, "default"))
    assert calibrate(model, batches()).method == "g-lora"


def test_an_inactive_adapter_before_an_in_place_operation() -> None:
    class InPlace(Mlp):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.head(torch.relu_(self.second(torch.relu_(self.first(x)))))
            return {"loss": (logits - labels).square().mean()}

    model = unplaced(G_LORA, InPlace(), target_modules=["first"])
    model.add_adapter("other", CPS_LORA.config(target_modules=["second"], placement="calibrate"))
    assert len(calibrate(model, [mlp_batch()], adapter_name="other").layers) == 1


@pytest.mark.parametrize("checkpointing", ["none", "plain", "reentrant"])
@pytest.mark.parametrize("reference_first", [False, True])
def test_a_loss_that_switches_the_adapter_off_for_a_reference(checkpointing: str, reference_first: bool) -> None:
    """As DPO's does; PEFT then lets adapter and saved modules require grad again, in the middle of a pass."""
    model = unplaced(G_LORA, modules_to_save=["lm_head"]).train()
    if checkpointing != "none":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    flags = {name: p.requires_grad for name, p in model.named_parameters()}

    def loss_fn(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
        policy = None if reference_first else model(**batch).loss
        with torch.no_grad(), model.disable_adapter():
            reference = model(**batch).loss
        return (model(**batch).loss if policy is None else policy) - reference.detach()

    report = calibrate(model, batches(), loss_fn=loss_fn)
    assert report.loss == pytest.approx(0, abs=1e-6)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())
    expected = calibrate(unplaced(G_LORA, modules_to_save=["lm_head"]), batches())
    assert [layer.partition for layer in report.layers] == [layer.partition for layer in expected.layers]


def test_replace_places_anew() -> None:
    model = unplaced(G_LORA)
    calibrate(model, [token_batch(0)])
    before = placement_of(model)
    with pytest.raises(CalibrationError, match="'default' is placed already; pass replace=True"):
        calibrate(model, [token_batch(1)])
    assert placement_of(model) == before
    calibrate(model, [token_batch(1)], replace=True)
    assert placement_of(model) != before
    random = get_peft_model(tiny_llama(), G_LORA.config(target_modules=LLAMA_TARGETS))
    with pytest.raises(CalibrationError, match="placed already"):
        calibrate(random, [token_batch(1)])
