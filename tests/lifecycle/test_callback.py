"""LocalizationCallback in transformers' Trainer and in TRL's: places once, changes nothing else of the run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from localora import CpsLoraConfig, LocalizationCallback, UnplacedAdapterError, placement_of
from localora.adapter.status import adapted_layers
from localora.lifecycle import callback as callback_module
from localora.lifecycle.passes import CalibrationError
from localora.lifecycle.trainer import calling_trainer
from method_table import BY_NAME, METHODS, Method, every_placed_method
from tiny_models import LLAMA_TARGETS, VOCABULARY, tiny_llama, token_batch

pytestmark = pytest.mark.slow

ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 5,
}


def examples(count: int) -> list[dict[str, torch.Tensor]]:
    batch = token_batch(examples=count)
    return [{key: value[i] for key, value in batch.items()} for i in range(count)]


def unplaced(method: Method, **options: object) -> PeftModel:
    settings = {"placement": "calibrate", "init_weights": True, "dropout": 0.1, "repartition": [], **options}
    set_seed(0)
    return get_peft_model(tiny_llama(), method.config(target_modules=LLAMA_TARGETS, **settings))


def trainer(model: PeftModel, folder: Path, callbacks: list, count: int = 12, **arguments: object) -> Trainer:
    args = TrainingArguments(str(folder), **{**ARGUMENTS, "max_steps": 6, "save_strategy": "no", **arguments})
    return Trainer(model, args, train_dataset=examples(count), callbacks=callbacks)


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("placed again")


@pytest.mark.parametrize(
    ("method", "count"),
    [(BY_NAME["g-lora"], 12), (BY_NAME["cps-lora"], 12), (BY_NAME["g-lora"], 6), (BY_NAME["g-lora"], 40)],
    ids=["g-lora", "cps-lora", "fewer-batches-than-steps", "part-of-an-epoch"],
)
def test_the_run_is_that_of_a_loaded_placement(method: Method, count: int, tmp_path: Path) -> None:
    """Random state and data order are kept: with the same labels written by hand, every loss is the same."""
    model, callback = unplaced(method), LocalizationCallback(steps=4)
    run = trainer(model, tmp_path, [callback], count)
    run.train()
    report = callback.reports["default"]
    assert report.batches == min(4, count // 2)
    assert {x.name: x.partition for x in report.layers} == {
        name: placed.partitions[-1] for name, placed in placement_of(model).items()
    }

    other = unplaced(method)
    for name, layer in adapted_layers(other, "default"):
        layer.place("default", next(x.partition for x in report.layers if x.name == name))
    quiet = LocalizationCallback(steps=4)
    second = trainer(other, tmp_path, [quiet], count)
    second.train()
    assert not quiet.reports
    third_model = unplaced(method)
    third_model.load_state_dict({k: v for k, v in other.state_dict().items() if "labels" in k}, strict=False)
    third = trainer(third_model, tmp_path, [], count)
    third.train()
    assert len(losses(run)) == 6
    assert losses(run) == losses(second) == losses(third)
    state, expected = model.state_dict(), third_model.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_one_that_is_given_its_trainer_looks_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looking = LocalizationCallback(steps=2)
    run = trainer(unplaced(BY_NAME["cps-lora"]), tmp_path, [looking])
    run.train()
    monkeypatch.setattr(callback_module, "calling_trainer", refuse)
    told = trainer(unplaced(BY_NAME["cps-lora"]), tmp_path, [])
    callback = LocalizationCallback.for_trainer(told, steps=2)
    told.train()
    assert callback.reports["default"].batches == 2
    assert callback.reports["default"].loss == looking.reports["default"].loss
    assert losses(told) == losses(run)
    with pytest.raises(CalibrationError, match=r"use LocalizationCallback.for_trainer\(trainer\)"):
        calling_trainer(run.state)


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda method: method.name)
def test_plain_lora_needs_no_calibration(method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback_module, "calibrate", refuse)
    run = trainer(unplaced(method), tmp_path, [LocalizationCallback()])
    run.train()
    assert len(losses(run)) == 6


def test_an_adapter_without_choice_has_nothing_to_re_place(tmp_path: Path) -> None:
    """CPS-LoRA re-partitions by default, but as plain LoRA it has no labels to change."""
    for options in ({"global_share": 1.0}, {"clusters": 1}):
        config = CpsLoraConfig(r=4, target_modules=LLAMA_TARGETS, **options)
        callback = LocalizationCallback()
        run = trainer(get_peft_model(tiny_llama(), config), tmp_path, [callback])
        run.train()
        assert len(losses(run)) == 6
        assert not callback.repartitioners["default"].events


def test_without_the_callback_training_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnplacedAdapterError, match="LocalizationCallback"):
        trainer(unplaced(BY_NAME["cps-lora"]), tmp_path, []).train()


def test_two_active_adapters_are_both_placed(tmp_path: Path) -> None:
    model = unplaced(BY_NAME["g-lora"])
    config = BY_NAME["cps-lora"].config(target_modules=["q_proj"], placement="calibrate", repartition=[])
    model.add_adapter("second", config)
    model.base_model.set_adapter(["default", "second"])
    callback = LocalizationCallback(steps=2)
    trainer(model, tmp_path, [callback]).train()
    assert {name: report.method for name, report in callback.reports.items()} == {
        "default": "g-lora",
        "second": "cps-lora",
    }


@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}], ids=["bf16", "checkpointing"])
def test_precision_and_checkpointing(tmp_path: Path, options: dict[str, object]) -> None:
    callback = LocalizationCallback(steps=2)
    run = trainer(unplaced(BY_NAME["g-lora"]), tmp_path, [callback], gradient_accumulation_steps=2, **options)
    run.train()
    assert len(callback.reports["default"].layers) == 8
    assert losses(run)[-1] < losses(run)[0]


def test_torch_compile(tmp_path: Path) -> None:
    runs = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        callback = LocalizationCallback(steps=2)
        run = trainer(unplaced(BY_NAME["cps-lora"], dropout=0.0, repartition=[0.5]), tmp_path, [callback], **options)
        run.train()
        runs.append((losses(run), callback.reports["default"].loss, callback.repartitioners["default"].events[0]))
    (plain, at_first, event), (compiled, also_at_first, other) = runs
    assert compiled == pytest.approx(plain, abs=1e-4)
    assert also_at_first == at_first
    assert other.step == event.step == 3
    assert other.loss_before == pytest.approx(event.loss_before, abs=1e-4)


def test_a_loss_of_one_s_own(tmp_path: Path) -> None:
    seen: list[str] = []

    def loss_fn(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append("used")
        return model(**batch).logits.square().mean()

    run = trainer(unplaced(BY_NAME["g-lora"]), tmp_path, [LocalizationCallback(steps=3, loss_fn=loss_fn)])
    run.train()
    assert len(seen) == 4  # three batches, and the last again for the share inside the block


# TRL


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def text(seed: int) -> str:
    words = torch.randint(3, VOCABULARY, (6,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{i}" for i in words)


@pytest.mark.parametrize("method", [BY_NAME["g-lora"], BY_NAME["cps-lora"]], ids=lambda method: method.name)
def test_sft_trainer(
    method: Method, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Dataset.from_list([{"prompt": text(i), "completion": text(100 + i)} for i in range(12)])

    def run(folder: str, callback: LocalizationCallback) -> SFTTrainer:
        args = SFTConfig(str(tmp_path / folder), **ARGUMENTS, max_steps=4, save_steps=2)
        return SFTTrainer(unplaced(method), args, train_dataset=data, processing_class=tokenizer, callbacks=[callback])

    callback = LocalizationCallback(steps=2)
    whole = run("a", callback)
    whole.train()
    assert callback.reports["default"].batches == 2
    assert len(losses(whole)) == 4
    monkeypatch.setattr(callback_module, "calibrate", refuse)
    resumed = run("b", LocalizationCallback(steps=2))
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert placement_of(resumed.model) == placement_of(whole.model)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-6)


@every_placed_method
def test_dpo_reference_adapter_is_the_loaded_one(
    method: Method, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    trained = unplaced(method)
    trainer(trained, tmp_path / "sft", [LocalizationCallback(steps=2)]).train()
    trained.save_pretrained(tmp_path / "adapter")
    policy = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter", is_trainable=True)
    data = Dataset.from_list([{"prompt": text(i), "chosen": text(50 + i), "rejected": text(100 + i)} for i in range(6)])
    args = DPOConfig(str(tmp_path / "dpo"), **ARGUMENTS, max_steps=2, save_strategy="no")
    with caplog.at_level(logging.ERROR):
        run = DPOTrainer(policy, args=args, train_dataset=data, processing_class=tokenizer)
    assert placement_of(run.model, "ref") == placement_of(run.model, "default") == placement_of(trained)
    for _, layer in adapted_layers(run.model, "ref"):
        assert torch.equal(layer.get_delta_weight("ref"), layer.get_delta_weight("default"))
        assert layer.localized_row_labels["ref"].data_ptr() != layer.localized_row_labels["default"].data_ptr()
    assert not any(p.requires_grad for n, p in run.model.named_parameters() if ".ref" in n)
    reference = {n: p.clone() for n, p in run.model.state_dict().items() if ".ref" in n}
    run.train()
    first = next(entry for entry in run.state.log_history if "rewards/chosen" in entry)
    assert first["loss"] == pytest.approx(0.693147, abs=1e-4)  # log 2: the policy is its own reference
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    assert all(torch.equal(run.model.state_dict()[n], p) for n, p in reference.items())
