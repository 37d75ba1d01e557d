"""An event keeps the function: all that was learned joins the frozen term, and what trains starts anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from moving import adapted_mlp, first_layer, partition, train, trainable
from peft import get_peft_model
from torch import Tensor, nn
from transformers import Adafactor, ViTConfig, ViTForImageClassification

import localora
from localora import CpsLoraConfig, Repartitioner, RepartitionEvent, ScheduleError
from localora.adapter.status import adapted_layers, adapter_size, frozen_rank_after, seed_of, size_of_budgets
from method_table import Method, every_method
from tiny_models import GPT2_TARGETS, LLAMA_TARGETS, Mlp, mlp_batch, tiny_gpt2, tiny_llama, token_batch

MODES = pytest.mark.parametrize("frozen", ["factors", "merged"])
BATCHES = [mlp_batch(seed=seed) for seed in range(3)]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    training = model.training
    out = model.eval()(**{key: value for key, value in batch.items() if key != "labels"})["logits"]
    model.train(training)
    return out


def deltas(model: nn.Module) -> dict[str, Tensor]:
    return {key: x.get_delta_weight("default").detach().double() for key, x in adapted_layers(model, "default")}


def event_now(model: nn.Module, optimizer: Any = None, batches: list[Any] = BATCHES) -> RepartitionEvent:
    event = Repartitioner(model, optimizer, 1, batches).step()
    assert event is not None
    return event


def test_under_autocast_no_base_weight_is_rounded() -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0], frozen="merged", init_weights=False)
    layer = first_layer(model)
    expected = (layer.get_base_weight().double() + layer.get_delta_weight("default").double()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        event_now(model)
    assert relative(layer.get_base_weight().double(), expected) < 1e-6


def test_a_layer_without_a_gradient_keeps_its_placement() -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0], frozen="factors")
    layers = [layer for _, layer in adapted_layers(model, "default")]
    old = [partition(layer) for layer in layers]
    layers[0].register_forward_hook(lambda _, __, out: out.detach())
    with pytest.warns(UserWarning, match="zero in 1 of 2 adapted layers, .* keep the placement they have"):
        event_now(model)
    assert partition(layers[0]) == old[0]


@pytest.mark.parametrize(("base", "targets"), [(tiny_llama, LLAMA_TARGETS), (tiny_gpt2, GPT2_TARGETS)])
@MODES
@every_method
def test_three_events_change_no_logit(method: Method, frozen: str, base: Any, targets: list[str]) -> None:
    model = get_peft_model(
        base(), method.config(target_modules=targets, repartition=[0.25, 0.5, 0.75], frozen=frozen, dropout=0.1)
    )
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    repartitioner = Repartitioner(model, optimizer, 4, [token_batch()])
    live = max(layer.localized_layout["default"].budget.dense_rank for _, layer in adapted_layers(model, "default"))
    for number in (1, 2, 3):
        model(**token_batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        before, updates = logits(model, token_batch()), deltas(model)
        base_before = first_layer(model).get_base_weight().clone()
        event = repartitioner.step()
        assert event is not None
        assert relative(logits(model, token_batch()), before) < 1e-6
        assert event.frozen_rank == number * live
        assert event.loss_after == pytest.approx(event.loss_before, rel=1e-5)
        for key, delta in deltas(model).items():
            assert relative(delta, updates[key]) < 1e-6
        for _, layer in adapted_layers(model, "default"):
            _, B = layer.live_factors("default")
            assert not B.any()
            assert (frozen == "merged") == (not layer.localized_frozen_A) == bool(layer.localized_folded)
        assert torch.equal(base_before, first_layer(model).get_base_weight()) == (frozen == "factors")
    assert len(repartitioner.events) == 3


@MODES
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@every_method
def test_what_trains_goes_on_as_it_began(method: Method, dropout: float, frozen: str) -> None:
    """Beside a frozen term, live factors train as new ones would on a base that has the term merged, dropout too."""
    model = adapted_mlp(method.name, repartition=[1.0], frozen=frozen, dropout=dropout)
    event_now(model)
    other = Mlp()
    for key, layer in adapted_layers(model, "default"):
        A, B = layer.frozen_factors("default") or (None, None)
        assert A is not None
        assert B is not None
        with torch.no_grad():
            own = dict(Mlp().named_parameters())[f"{key.rsplit('.', 1)[1]}.weight"]
            other.get_submodule(key.rsplit(".", 1)[1]).weight.copy_(own + B @ A)
    expected = get_peft_model(other, method.config(target_modules=["first", "second"], dropout=dropout))  # type: ignore[arg-type]
    for (_, theirs), (_, ours) in zip(
        adapted_layers(expected, "default"), adapted_layers(model, "default"), strict=True
    ):
        with torch.no_grad():
            for a, b in zip(theirs.trained("default").values(), ours.trained("default").values(), strict=True):
                a.copy_(b)
        if method.places:
            theirs.place("default", partition(ours))
    losses = []
    for trained in (expected, model):
        torch.manual_seed(0)  # what dropout draws
        losses.append(train(trained, torch.optim.AdamW(trainable(trained), lr=1e-2), 5))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adam fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "amsgrad foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True, foreach=True),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "adafactor": lambda p: Adafactor(p, lr=1e-2, relative_step=False, scale_parameter=False),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["", "accelerate"])
def test_the_optimizer_forgets_and_parameters_stay_themselves(kind: str, wrapped: bool) -> None:
    """After an event the next steps are those of a new optimizer on the same numbers."""
    model = adapted_mlp("hybrid", repartition=[1.0])
    inner = OPTIMIZERS[kind](trainable(model))
    optimizer = inner
    if wrapped:
        optimizer = Accelerator(cpu=True).prepare_optimizer(inner)
    train(model, optimizer, 3)
    identities = [id(parameter) for parameter in trainable(model)]
    assert len(inner.state) == len(identities)
    event_now(model, optimizer)
    assert not inner.state
    assert [id(parameter) for parameter in trainable(model)] == identities
    assert all(parameter.grad is None for parameter in trainable(model))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = [train(model, OPTIMIZERS[kind](trainable(model)), 3, first=3), model.state_dict()]
    expected[1] = {key: value.clone() for key, value in expected[1].items()}  # type: ignore[union-attr]
    model.load_state_dict(state)
    assert train(model, optimizer, 3, first=3) == expected[0]
    assert all(torch.equal(value, expected[1][key]) for key, value in model.state_dict().items())


def test_other_parameters_keep_their_state() -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0], modules_to_save=["head"])
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    train(model, optimizer, 2)
    event_now(model, optimizer)
    kept = {name for name, parameter in model.named_parameters() if parameter in optimizer.state}
    assert {name.rpartition(".modules_to_save.")[0] for name in kept} == {"base_model.model.head"}


def test_factors_start_from_the_seed_the_step_and_the_layer_and_nothing_else() -> None:
    def started(seed: int, step: int, noise: int) -> list[Tensor]:
        model = adapted_mlp("hybrid", repartition=[step / 4], seed=seed)
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        repartitioner = Repartitioner(model, None, 4, BATCHES, done_steps=step - 1)
        repartitioner.step()
        assert torch.equal(torch.random.get_rng_state(), state)
        return [p.detach() for name, p in model.named_parameters() if "localized_local_A" in name]

    first = started(0, 1, noise=7)
    assert all(torch.equal(a, b) for a, b in zip(first, started(0, 1, noise=8), strict=True))
    for other in (started(1, 1, noise=7), started(0, 2, noise=7)):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0][:, :16], first[1][:, :16])
    for A in first:  # LoRA's start: uniform within 1 / sqrt(columns)
        bound = A.shape[1] ** -0.5
        assert 0.9 * bound < A.abs().max() <= bound


# Labels


@pytest.mark.parametrize("method", ["g-lora", "cps-lora", "hybrid"])
@pytest.mark.parametrize("place", ["found", "random", "kept"])
def test_labels_after_an_event(method: str, place: str) -> None:
    model = adapted_mlp(method, repartition=[0.5], repartition_place=place)
    old = {key: partition(layer) for key, layer in adapted_layers(model, "default")}
    repartitioner = Repartitioner(model, None, 2, BATCHES)
    event = repartitioner.step()
    assert event is not None
    new = {key: partition(layer) for key, layer in adapted_layers(model, "default")}
    rows = sum(int((old[key].row_labels != new[key].row_labels).sum()) for key in old)
    cols = sum(int((old[key].col_labels != new[key].col_labels).sum()) for key in old)
    assert (event.place, event.rows_moved, event.cols_moved) == (place, rows, cols)
    assert event.captured_before is not None
    assert event.captured_after is not None
    if place == "kept":
        assert old == new
        assert event.captured_after == event.captured_before
    else:
        assert rows > 0
        assert cols > 0
    if place == "found":
        assert event.captured_after > event.captured_before + 0.05
    if place == "random":
        assert all(sorted(old[key].row_sizes) == sorted(new[key].row_sizes) for key in old)


@pytest.mark.parametrize("method", ["lora-by-share", "lora-by-clusters"])
def test_plain_lora_has_nothing_to_place(method: str) -> None:
    event = event_now(adapted_mlp(method, repartition=[1.0]))
    assert (event.place, event.rows_moved, event.cols_moved) == ("none", 0, 0)
    assert event.captured_before is event.captured_after is None
    assert event.frozen_rank == 4
    assert "captured" not in str(event)


# Ranks and sizes


def test_a_bound_recompresses_and_the_stated_error_is_the_measured_one() -> None:
    model = adapted_mlp("cps-lora", repartition=[0.25, 0.5, 0.75], frozen_rank=14)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    repartitioner = Repartitioner(model, optimizer, 4, BATCHES)
    train(model, optimizer, 1)
    first = repartitioner.step()
    assert first is not None
    assert (first.frozen_rank, first.recompression_error) == (12, 0.0)
    train(model, optimizer, 1)
    before = deltas(model)
    second = repartitioner.step()
    assert second is not None
    after = deltas(model)
    errors = [relative(after[key], before[key]) for key in before]
    assert second.frozen_rank == 14 == repartitioner.adapter.config.consolidated_rank
    assert second.recompression_error == pytest.approx(max(errors), rel=1e-3)
    assert max(errors) > 1e-3
    assert f"error {second.recompression_error:.1e}" in str(second)
    singular = torch.linalg.svdvals(before[next(iter(before))])
    best = float(singular[14:].norm() / singular.norm())
    assert errors[0] == pytest.approx(best, rel=1e-3)  # the best that this rank can do


def test_layers_of_different_rank_share_one_frozen_rank() -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0], rank_pattern={"second": 2})
    before = deltas(model)
    event = event_now(model)
    assert event.frozen_rank == 12
    assert {layer.localized_frozen_A["default"].shape[0] for _, layer in adapted_layers(model, "default")} == {12}
    assert all(relative(delta, before[key]) < 1e-6 for key, delta in deltas(model).items())


def test_the_norm_that_joined_is_that_of_the_update() -> None:
    model = adapted_mlp("hybrid", repartition=[1.0])
    expected = sum(float(delta.square().sum()) for delta in deltas(model).values()) ** 0.5
    assert event_now(model).joined_norm == pytest.approx(expected, rel=1e-5)


@MODES
@every_method
def test_three_numbers_of_size(method: Method, frozen: str) -> None:
    model = adapted_mlp(method.name, repartition=[0.5, 1.0], frozen=frozen)
    budgets = [layer.localized_layout["default"].budget for _, layer in adapted_layers(model, "default")]
    config = model.peft_config["default"]
    predicted = [size_of_budgets(budgets, frozen_rank_after(budgets, config, events)) for events in range(3)]  # type: ignore[arg-type]
    repartitioner = Repartitioner(model, None, 2, BATCHES)
    found = [adapter_size(model)]
    for _ in range(2):
        repartitioner.step()
        found.append(adapter_size(model))
    assert found == predicted
    trainable_parameters = sum(parameter.numel() for parameter in trainable(model))
    held = [item for _, layer in adapted_layers(model, "default") for item in layer.state_dict().items()]
    stored = sum(t.numel() for key, t in held if key.startswith("localized_") and t.is_floating_point())
    assert (found[2].trainable, found[2].stored) == (trainable_parameters, stored)
    assert found[2].rank == max(len(layer.dense_factors("default")[0]) for _, layer in adapted_layers(model, "default"))


# Refusals


def test_factors_that_are_not_finite_are_not_consolidated() -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0])
    repartitioner = Repartitioner(model, None, 1, BATCHES)
    with torch.no_grad():
        first_layer(model).localized_local_A["default"].weight[0, 0] = float("inf")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ScheduleError, match=r"first\.localized_local_A.* no longer finite.*last checkpoint"):
        repartitioner.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0])
    batch = mlp_batch()
    batch["x"][0, 0] = float("nan")
    with pytest.raises(localora.CalibrationError, match=r"loss .* is nan; has training diverged\?.*last checkpoint"):
        Repartitioner(model, None, 1, [batch]).step()
    assert not first_layer(model).localized_frozen_A


def test_an_optimizer_of_other_parameters_is_refused_before_training() -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0])
    optimizer = torch.optim.AdamW(adapted_mlp("cps-lora").parameters())
    with pytest.raises(ScheduleError, match=r"does not hold the factors of .*first.*DeepSpeed"):
        Repartitioner(model, optimizer, 1, BATCHES)
    Repartitioner(adapted_mlp("cps-lora", repartition=[]), optimizer, 1, BATCHES)  # no events, no need


def test_factors_taken_apart_are_refused_before_training() -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0])
    first_layer(model).localized_local_A["default"].weight.data = torch.empty(0)
    with pytest.raises(ScheduleError, match=r"no longer parameters of shape \(4, 20\), but of \(0,\): FSDP1 took"):
        Repartitioner(model, None, 1, BATCHES)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_a_shared_base_weight_is_not_merged_into() -> None:
    base = tiny_gpt2()
    model = get_peft_model(
        base, CpsLoraConfig(target_modules=["lm_head"], placement="random", repartition=[1.0], frozen="merged", r=4)
    )
    with pytest.raises(ScheduleError, match="lm_head is shared with another layer"):
        Repartitioner(model, None, 1, [token_batch()])


def test_a_quantized_base_weight_is_not_merged_into() -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0], frozen="merged")
    first_layer(model).quantization_backend = object()
    with pytest.raises(ScheduleError, match=r"first is quantized.*use 'factors'"):
        Repartitioner(model, None, 1, BATCHES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repartition_place": "best"}, "repartition_place must be one of found, random, kept, got 'best'"),
        ({"frozen": "gone"}, "frozen must be one of factors, merged, got 'gone'"),
        ({"frozen_rank": -1}, "frozen_rank must be an integer of at least 0"),
        ({"frozen": "merged", "frozen_rank": 8}, "set one of them"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CpsLoraConfig(**options)


# What a first design did not survive


@pytest.mark.parametrize("seed", range(3))
def test_a_high_learning_rate_on_a_tiny_vision_transformer_stays_finite(seed: int) -> None:
    """Moving rows by least squares, losses here went 1.56, 1.30, 94021, 960332, and an event changed every logit."""
    torch.manual_seed(seed)
    vit = ViTForImageClassification(
        ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, image_size=30,
            patch_size=6, num_labels=5,
        )
    )  # fmt: skip
    batch = {"pixel_values": torch.randn(4, 3, 30, 30), "labels": torch.arange(4)}
    config = CpsLoraConfig(
        r=4, clusters=2, sketch=16, global_share=0.5, repartition=[0.25, 0.5], target_modules="all-linear"
    )
    model = get_peft_model(vit, config)
    localora.calibrate(model, [batch, batch], 2)
    optimizer = torch.optim.Adam(trainable(model), 1e-2)
    repartitioner = Repartitioner(model, optimizer, 4, [batch])
    losses = []
    for _ in range(4):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        before = logits(model, batch)
        if repartitioner.step():
            assert relative(logits(model, batch), before) < 1e-6
        losses.append(loss.item())
    assert len(repartitioner.events) == 2
    assert max(losses) < 5
    norms = [float(p.detach().norm()) for p in trainable(model)]
    assert max(norms) < 20


def test_layers_events_and_seeds_start_anew_with_other_numbers() -> None:
    of = {
        seed_of(0, 5, key="q_proj"),
        seed_of(0, 5, key="k_proj"),
        seed_of(0, 6, key="q_proj"),
        seed_of(1, 5, key="q_proj"),
    }
    assert len(of) == 4


@pytest.mark.parametrize("how", ["wrapped", "in place"])
@pytest.mark.parametrize("place", ["found", "random"])
def test_a_compiled_model_has_the_same_event(how: str, place: str) -> None:
    def after(compiled: bool) -> list[Tensor]:
        model = adapted_mlp("hybrid", repartition=[1.0], repartition_place=place)
        if compiled and how == "in place":
            model.compile(backend="eager")
        event_now(torch.compile(model, backend="eager") if compiled and how == "wrapped" else model)
        return [layer.state_dict()[key] for _, layer in adapted_layers(model, "default") for key in layer.state_dict()]

    for plain, compiled in zip(after(False), after(True), strict=True):
        assert torch.equal(plain, compiled)
