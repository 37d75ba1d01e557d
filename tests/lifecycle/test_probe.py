"""The probe of calibration finds clusters that a gradient does not show, and leaves nothing behind but labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, multiprocessing, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from adapted_models import unplaced
from localora import CalibrationError, CpsLoraConfig, LocalizationCallback, calibrate
from localora.adapter.model import adapted_layers
from localora.lifecycle.probe import PROBE
from localora.placement.partition import Partition
from method_table import Method
from tiny_models import GPT2_TARGETS, tiny_gpt2, tiny_llama, token_batch

CPS_LORA = Method("cps-lora", CpsLoraConfig, {"clusters": 3, "probe_steps": 6, "repartition": []})
HYBRID = Method("hybrid", CpsLoraConfig, {"clusters": 2, "global_share": 0.5, "probe_steps": 6, "repartition": []})
every_probe = pytest.mark.parametrize("method", [CPS_LORA, HYBRID], ids=lambda method: method.name)


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    return [token_batch(seed) for seed in range(count)]


def partitions(model: PeftModel) -> list[Partition | None]:
    return [layer.local_partition("default") for _, layer in adapted_layers(model, "default")]


# What it finds


class Distillation(nn.Module):
    """A Llama of one block, and the distance of its logits to a teacher's: all layers with a planted update."""

    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlamaConfig(
            vocab_size=64, num_key_value_heads=2, initializer_range=0.25, tie_word_embeddings=False, **shape
        )
        self.llama = LlamaForCausalLM(config).eval()

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.llama(input_ids=input_ids).logits - labels).square().mean()}


@torch.no_grad()
def plant(teacher: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Adds an update of two blocks of rank 3, on shuffled rows and columns, to each layer; gives their labels."""
    generator = torch.Generator().manual_seed(1)
    labels = {}
    for name, layer in teacher.named_modules():
        if name.rsplit(".", 1)[-1] not in Distillation.targets:
            continue
        m, n = layer.weight.shape
        rows, cols = (torch.randperm(size, generator=generator) % 2 for size in (m, n))
        factors = torch.randn(2, 3, m, generator=generator), torch.randn(2, 3, n, generator=generator)
        delta = sum((factors[0][k] * (rows == k)).T @ (factors[1][k] * (cols == k)) for k in range(2))
        layer.weight += 0.6 * layer.weight.norm() * delta / delta.norm()
        labels[name] = rows, cols
    return labels


def test_clusters_that_the_gradient_does_not_show_are_found() -> None:
    student, teacher = Distillation(), Distillation()
    labels = plant(teacher)
    generator = torch.Generator().manual_seed(2)
    tokens = [torch.randint(64, (16, 12), generator=generator) for _ in range(400)]
    with torch.no_grad():
        data = [{"input_ids": ids, "labels": teacher.llama(input_ids=ids).logits} for ids in tokens]

    def agreement(**options: object) -> float:
        config = CpsLoraConfig(r=3, clusters=2, target_modules=list(student.targets), repartition=[], **options)
        model = get_peft_model(student, config)
        report = calibrate(model, data, steps=64)
        model.unload()
        indices = []
        for layer in report.layers:
            rows, cols = next(planted for name, planted in labels.items() if layer.name.endswith(name))
            indices.append(adjusted_rand_score(rows, layer.partition.row_labels))
            indices.append(adjusted_rand_score(cols, layer.partition.col_labels))
        return sum(indices) / len(indices)

    assert agreement() < 0.1
    assert agreement(probe_steps=400, probe_rank=32, probe_lr=5e-3) > 0.7


@every_probe
def test_it_is_a_function_of_batches_and_seed(method: Method) -> None:
    torch.manual_seed(1)
    first = calibrate(unplaced(method), batches())
    torch.manual_seed(2)
    again = calibrate(unplaced(method), batches())
    other = calibrate(unplaced(method, seed=1), batches())
    assert [x.partition for x in first.layers] == [x.partition for x in again.layers]
    assert first.loss == again.loss
    assert [x.partition for x in first.layers] != [x.partition for x in other.layers]
    assert all(0 < x.captured_energy < 1 for x in first.layers)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant: bool) -> None:
    expected = calibrate(unplaced(CPS_LORA).double(), batches())
    model = unplaced(CPS_LORA).double().train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    report = calibrate(model, batches())
    assert [x.partition for x in report.layers] == [x.partition for x in expected.layers]


def test_conv1d_is_placed() -> None:
    model = unplaced(CPS_LORA, tiny_gpt2(), target_modules=GPT2_TARGETS)
    first, second = calibrate(model, batches()).layers[:2]
    assert [(x.partition.m, x.partition.n) for x in (first, second)] == [(96, 32), (128, 32)]


# What it is while it lasts, and what it leaves


@pytest.mark.parametrize(("rank", "expected"), [(0, 24), (5, 5), (100, 32)])
def test_only_its_factors_are_trained_in_full_precision(rank: int, expected: int) -> None:
    """Default: twice K r = 3 * 4, and at most the smaller side of the matrix."""
    model = unplaced(CPS_LORA, tiny_llama().bfloat16(), probe_rank=rank)
    seen: list[dict[str, Tensor]] = []

    def loss_fn(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        return model(**batch).loss

    calibrate(model, batches(2), loss_fn=loss_fn)
    assert len(seen) == 1 + 6 + 1  # the loss of the first batch is taken before and after the steps
    assert all(PROBE in name and factor.dtype == torch.float32 for name, factor in seen[0].items())
    assert len(seen[0]) == 2 * 8
    shapes = {name.split(".")[-4]: tuple(factor.shape) for name, factor in seen[0].items() if "_A." in name}
    assert shapes["gate_proj"] == (expected, 32)
    assert shapes["k_proj"] == (min(expected, 16), 32)
    zero = {name for name, factor in seen[0].items() if not factor.any()}
    assert zero == {name for name in seen[0] if "_B." in name}
    # Adam's first step is the learning rate wherever there is a gradient
    step = next(seen[2][name].abs().max() for name in zero)
    assert step == pytest.approx(3e-3, rel=1e-3)


@every_probe
def test_touches_nothing_but_the_labels(method: Method) -> None:
    model = unplaced(method, dropout=0.1, modules_to_save=["lm_head"])
    model.add_adapter("second", CPS_LORA.config(target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    model.train()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    gradients = {name: torch.full_like(p, 3.0) for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.grad = gradients.get(name)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    identities = [id(p) for p in model.parameters()]
    modules = [name for name, _ in model.named_modules()]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    active = [layer.active_adapter for _, layer in adapted_layers(model, "default")]
    random_state = torch.random.get_rng_state()

    calibrate(model, batches(), adapter_name="default")

    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is gradients.get(name) for name, p in model.named_parameters())
    assert all((gradient == 3).all() for gradient in gradients.values())
    assert [id(p) for p in model.parameters()] == identities
    assert [name for name, _ in model.named_modules()] == modules
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()] == hooks
    assert [layer.active_adapter for _, layer in adapted_layers(model, "default")] == active
    assert model.state_dict().keys() == state.keys()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == {name for name in state if name.endswith("_labels.default")}


def test_fewer_batches_than_steps_are_gone_through_again() -> None:
    seen: list[tuple[int, int]] = []
    met: list[int] = []

    def loss_fn(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
        met.append(int(batch["input_ids"].sum()))
        return model(**batch).loss

    report = calibrate(
        unplaced(CPS_LORA), iter(batches(4)), steps=1, loss_fn=loss_fn, progress=lambda *x: seen.append(x)
    )
    assert report.batches == 4
    assert len(set(met)) == 4
    assert met[1:-1] == [*met[1:5], *met[1:3]]
    assert met[0] == met[1] == met[-1]  # before and after the steps
    assert seen == [(done, 6) for done in range(1, 7)]


def examples() -> list[dict[str, Tensor]]:
    batch = token_batch(examples=16)
    return [{key: value[i] for key, value in batch.items()} for i in range(16)]


def test_the_trainer_s_run_is_that_of_a_loaded_placement(tmp_path: Path) -> None:
    """The callback reads a batch a step, and the run that follows does not know that it did."""

    def run(place: dict[str, Partition]) -> tuple[list[float], LocalizationCallback]:
        model = unplaced(CPS_LORA, dropout=0.1)
        for name, partition in place.items():
            dict(adapted_layers(model, "default"))[name].place("default", partition)
        callback = LocalizationCallback(steps=2)
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=2, max_steps=4, learning_rate=1e-2, logging_steps=1,
            report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=examples(), callbacks=[callback])
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], callback

    losses, callback = run({})
    report = callback.reports["default"]
    assert report.batches == 6
    placed, quiet = run({layer.name: layer.partition for layer in report.layers})
    assert not quiet.reports
    assert len(losses) == 4
    assert losses == placed


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe_steps": -1}, "probe_steps must be an integer of at least 0"),
        ({"probe_rank": 1.5}, "probe_rank must be an integer of at least 0"),
        ({"probe_lr": 0.0}, "probe_lr must be above 0, got 0.0"),
        ({"probe_steps": 5, "repartition": [0.5]}, "set repartition_place='kept'"),
        ({"probe_steps": 5, "repartition_every": 3}, "or repartition_signal='delta'"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CpsLoraConfig(**options)


@pytest.mark.parametrize("options", [{"repartition_signal": "delta"}, {"repartition_place": "kept"}])
def test_events_that_do_not_plan_on_a_gradient_may_follow(options: dict[str, Any]) -> None:
    assert CpsLoraConfig(probe_steps=5, repartition=[0.5], **options).repartition == [0.5]


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (0, "batch 1 is nan; check the batch for empty labels"),
        (3, "batch 3 is nan; after steps .* lower probe_lr"),
        (7, "batch 1 is nan; after steps .* lower probe_lr"),
    ],
)
def test_divergence_names_the_remedy_and_leaves_nothing(first: int, message: str) -> None:
    model = unplaced(CPS_LORA)
    state, done = {name: value.clone() for name, value in model.state_dict().items()}, [0]

    def loss_fn(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
        done[0] += 1
        return model(**batch).loss * (float("nan") if done[0] > first else 1.0)

    with pytest.raises(CalibrationError, match=message):
        calibrate(model, batches(), loss_fn=loss_fn)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(layer.is_unplaced("default") for _, layer in adapted_layers(model, "default"))


def test_a_probe_that_does_not_learn_says_so() -> None:
    done = [0.0]

    def loss_fn(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
        done[0] += 1
        return 1e-6 * model(**batch).loss + done[0]

    with pytest.warns(UserWarning, match="took the loss of the first batch from 1 to 8, .* lower probe_lr"):
        calibrate(unplaced(CPS_LORA), batches(1), loss_fn=loss_fn)


def test_a_loss_that_no_layer_reaches() -> None:
    def loss_fn(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch).loss.detach() + torch.zeros((), requires_grad=True)

    with pytest.raises(CalibrationError, match="no gradient reached any adapted layer"):
        calibrate(unplaced(CPS_LORA, probe_steps=1), batches(1), loss_fn=loss_fn)


# Several processes


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = unplaced(CPS_LORA, probe_steps=4).double()
    calibrate(model, batches(4)[2 * rank : 2 * rank + 2])
    torch.save(partitions(model), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_one_probe(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert first == second
    # one process that takes each step on a batch of either
    data = batches(4)
    alone = unplaced(CPS_LORA, probe_steps=4).double()
    calibrate(alone, [(data[0], data[2]), (data[1], data[3])], loss_fn=lambda m, both: sum(m(**b).loss for b in both))
    assert partitions(alone) == first
    half = unplaced(CPS_LORA, probe_steps=4).double()
    calibrate(half, data[:2])
    assert partitions(half) != first
