"""What training shows of the gradient: the sums are those of real weight gradients, and training does not notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from moving import adapted_mlp, trainable
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from localora import CalibrationError, CpsLoraConfig, GlobalLocalLoraConfig, Repartitioner, ScheduleError
from localora.adapter.model import adapted_layers
from localora.lifecycle.passes import Passes
from localora.lifecycle.training_signal import TrainingSignal
from method_table import BY_NAME
from tiny_models import LLAMA_TARGETS, mlp_batch, tiny_llama, token_batch

WIDTH = 6
MICRO_BATCHES = [token_batch(0), token_batch(1, examples=2)]
Prepare = Callable[[PeftModel], None]


def as_it_is(model: PeftModel) -> None:
    pass


def checkpointing(reentrant: bool) -> Prepare:
    def prepare(model: PeftModel) -> None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()

    return prepare


WAYS = pytest.mark.parametrize(
    "prepare",
    [as_it_is, checkpointing(reentrant=False), checkpointing(reentrant=True)],
    ids=["plain", "checkpointing", "checkpointing-reentrant"],
)


def llama(prepare: Prepare = as_it_is, targets: list[str] = LLAMA_TARGETS, **options: Any) -> PeftModel:
    """Placed, with a non-zero update and dropout, in training mode."""
    settings = {"repartition_observe": "training", "sketch": WIDTH, "dropout": 0.1, **options}
    torch.manual_seed(3)
    model = get_peft_model(tiny_llama(), BY_NAME["cps-lora"].config(target_modules=targets, **settings)).train()
    prepare(model)
    return model


def signal_of(model: PeftModel) -> TrainingSignal:
    return TrainingSignal(dict(adapted_layers(model, "default")), model.peft_config["default"])


def backward(model: nn.Module, autocast: bool = False) -> None:
    """Two micro-batches, whose gradients add up."""
    torch.manual_seed(5)  # of dropout
    for batch in MICRO_BATCHES:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss / 2
        loss.backward()


@WAYS
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
def test_observed_or_not_training_gradients_are_the_same(prepare: Prepare, autocast: bool) -> None:
    plain, observed = llama(prepare), llama(prepare)
    backward(plain, autocast)
    signal = signal_of(observed)
    with signal.observing():
        backward(observed, autocast)
    expected = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    found = {name: parameter.grad for name, parameter in observed.named_parameters() if parameter.requires_grad}
    assert found.keys() == expected.keys()
    for name, grad in found.items():  # a watched base layer adds its input gradient by itself, so one sum rounds apart
        torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-7)
    assert all(grad is not None and grad.abs().max() > 0 for grad in found.values())
    assert all(parameter.grad is None for parameter in observed.parameters() if not parameter.requires_grad)
    assert all(gradient.batches == 2 for gradient in signal.gradients.values())  # not once more for recomputing
    assert not any(module.base_layer._forward_hooks for _, module in adapted_layers(observed, "default"))


@WAYS
@pytest.mark.parametrize("normalise", [False, True], ids=["raw", "normalised"])
def test_the_sum_over_a_step_is_that_of_real_weight_gradients(prepare: Prepare, normalise: bool) -> None:
    model, oracle = llama(prepare, repartition_normalise=normalise).double(), llama().double()
    signal = signal_of(model)
    with signal.observing():
        backward(model)
    signal.end_step()
    weights = {key: layer.get_base_layer().weight.requires_grad_() for key, layer in adapted_layers(oracle, "default")}
    backward(oracle)
    for key, gradient in signal.gradients.items():
        G, sketch = weights[key].grad, gradient.total
        assert G is not None
        torch.testing.assert_close(sketch.Y, G @ sketch._omega(), rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(sketch.Z, sketch._psi() @ G, rtol=1e-7, atol=1e-12)
        squares = sketch.Y.square().sum(1) if normalise else torch.zeros(len(G), dtype=torch.float64)
        torch.testing.assert_close(gradient.row_squares, squares)


def test_what_is_not_training_is_not_observed() -> None:
    """Evaluation, and the calibration of another adapter, whose passes go through the same layers."""
    model = llama()
    signal = signal_of(model)
    with signal.observing():
        with torch.no_grad():
            model(**MICRO_BATCHES[0])
        Passes(model, MICRO_BATCHES, 1).run(dict(adapted_layers(model, "default")), {}, MICRO_BATCHES[:1])
        assert all(gradient.batches == 0 for gradient in signal.gradients.values())
        backward(model)
    assert all(gradient.batches == 2 for gradient in signal.gradients.values())


class Products(TorchDispatchMode):
    """Counts the products of something with a matrix of the given width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.count = width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default and args[1].shape[1] == self.width:
            self.count += 1
        return func(*args, **(kwargs or {}))


@WAYS
def test_layers_that_read_the_same_input_multiply_it_once(prepare: Prepare) -> None:
    """Two blocks of q, k, v | o | gate, up | down: 4 inputs for 7 layers. Each layer also needs g^T (x Omega)."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = llama(prepare, targets, sketch=13)
    signal = signal_of(model)
    with signal.observing(), Products(13) as products:
        backward(model)
    assert products.count == len(MICRO_BATCHES) * 2 * (4 + 7)
    signal.end_step()
    assert signal.inputs._x is None  # no activation outlives the step


# In a loop


BATCHES = [mlp_batch(seed=100)]


def loop(stop: int, total: int = 6, resume: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Steps up to `stop`, from the beginning or from what another loop returned."""
    settings = {"repartition": [0.5, 0.9], "repartition_observe": "training", "settle": 1.0, **options}
    model = adapted_mlp("cps-lora", **settings)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    repartitioner = Repartitioner(model, optimizer, total, BATCHES)
    if resume:
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
        repartitioner.load_state_dict(resume["repartitioner"])
    losses = []
    for step in range(repartitioner.done_steps, stop):
        with repartitioner.observe():
            for half in range(2):
                loss = model(**mlp_batch(seed=2 * step + half))["loss"] / 2
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        repartitioner.step()
        losses.append(loss.item())
    return {
        "losses": losses,
        "events": [event.step for event in repartitioner.events],
        "moved": [event.rows_moved for event in repartitioner.events],
        "model": {key: value.clone() for key, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "repartitioner": repartitioner.state_dict(),
        "observes": repartitioner.signal is not None,
    }


def never(*_: object, **__: object) -> None:
    raise AssertionError("batches were observed")


@pytest.mark.parametrize("signal", ["gradient", "both"])
def test_an_event_takes_what_training_showed(signal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Passes, "run", never)
    run = loop(6, repartition_signal=signal)
    assert run["events"] == [3, 6]
    assert min(run["moved"]) > 0
    assert not run["observes"]  # nothing is left to observe for


@pytest.mark.parametrize("normalise", [False, True])
def test_a_resumed_loop_is_the_uninterrupted_one_to_the_last_bit(normalise: bool) -> None:
    options = {"repartition_normalise": normalise}
    whole = loop(6, **options)
    for stop in (2, 3, 5, 6):
        half = loop(stop, **options)
        rest = loop(6, resume=half, **options)
        assert half["losses"] + rest["losses"] == whole["losses"]
        assert half["events"] + rest["events"] == whole["events"] == [3, 6]
        assert all(torch.equal(value, whole["model"][key]) for key, value in rest["model"].items())


def test_each_event_starts_from_nothing() -> None:
    state = loop(5)["repartitioner"]
    batches = {key: int(value) for key, value in state.items() if key.endswith(".batches")}
    assert set(batches.values()) == {4}  # steps 4 and 5, two micro-batches each


def test_a_loop_without_observe_is_told() -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0], repartition_observe="training")
    with pytest.raises(CalibrationError, match=r"in training since the last event; put `with repartitioner.observe"):
        Repartitioner(model, None, 1, BATCHES).step()


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    model = adapted_mlp("cps-lora", repartition=[1.0], repartition_observe="training")
    repartitioner = Repartitioner(model, None, 1, BATCHES)
    with repartitioner.observe():
        (model(**BATCHES[0])["loss"] * float("inf")).backward()
    with pytest.raises(CalibrationError, match=r"the gradient of .*first holds NaN or infinity"):
        repartitioner.step()


def tampered(**changes: Tensor | None) -> dict[str, Any]:
    half = loop(2)
    state = {**half["repartitioner"], **changes}
    return {**half, "repartitioner": {key: tensor for key, tensor in state.items() if tensor is not None}}


FIRST = "base_model.model.first"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{FIRST}.Y": None}, rf"lacks '{FIRST}.Y': the checkpoint is of another model or other settings"),
        ({f"{FIRST}.row_squares": torch.zeros(24)}, f"has an unknown '{FIRST}.row_squares'"),
        ({f"{FIRST}.Y": torch.zeros(24, 3)}, r"of shape \(24, 3\) instead of \(24, 20\)"),
        ({"processes": torch.tensor(4)}, "is of 4 processes"),
        ({"fingerprint": torch.zeros(32, dtype=torch.uint8)}, "belongs to other adapter weights"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(changes: dict[str, Tensor | None], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        loop(6, resume=tampered(**changes))


def test_a_state_of_another_step_is_refused() -> None:
    state = loop(2)["repartitioner"]
    model = adapted_mlp("cps-lora", repartition=[0.5], repartition_observe="training")
    repartitioner = Repartitioner(model, None, 6, BATCHES, done_steps=1)
    with pytest.raises(ScheduleError, match="of step 2, but training resumes after step 1"):
        repartitioner.load_state_dict(state)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (GlobalLocalLoraConfig, {"repartition_observe": "training"}, r"Taylor scores .* leave repartition_observe="),
        (CpsLoraConfig, {"repartition_observe": "always"}, "must be event or training, got 'always'"),
        (CpsLoraConfig, {"repartition_normalise": True}, "needs repartition_observe='training'"),
        (CpsLoraConfig, {"repartition_observe": "training", "repartition_signal": "delta"}, "uses no gradient"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)
