"""In TRL's trainers the adapter is placed by the loss that is trained, on batches that may be made in the step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast, Trainer, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from localora import LocalizationCallback, calibrate
from method_table import BY_NAME
from tiny_models import LLAMA_TARGETS, VOCABULARY, tiny_llama

pytestmark = pytest.mark.slow

EXAMPLES = 4  # all of them in each batch, so that the first step has the loss that calibration had
ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": EXAMPLES,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "max_steps": 2,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def text(seed: int) -> str:
    words = torch.randint(3, VOCABULARY, (6,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{i}" for i in words)


def rows(*columns: str) -> Dataset:
    return Dataset.from_list([{column: text(100 * k + i) for k, column in enumerate(columns)} for i in range(EXAMPLES)])


def unplaced(model: torch.nn.Module | None = None, **options: Any) -> Any:
    settings = {"placement": "calibrate", "init_weights": True, "repartition": [], **options}
    return get_peft_model(model or tiny_llama(), BY_NAME["g-lora"].config(target_modules=LLAMA_TARGETS, **settings))


def first(run: Trainer, key: str) -> Any:
    return next(entry[key] for entry in run.state.log_history if key in entry)


def test_sft_with_another_loss_than_the_model_s(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    found = {}
    for loss_type in ("nll", "dft"):
        callback = LocalizationCallback()
        args = SFTConfig(str(tmp_path), **ARGUMENTS, loss_type=loss_type)
        data = rows("prompt", "completion")
        run = SFTTrainer(unplaced(), args, train_dataset=data, processing_class=tokenizer, callbacks=[callback])
        run.train()
        found[loss_type] = callback.reports["default"].loss
        assert found[loss_type] == pytest.approx(first(run, "loss"), rel=1e-5)
        # TRL counts tokens in its loss; those of calibration are none of the run's.
        assert first(run, "num_tokens") == sum(len(row["input_ids"]) for row in run.train_dataset)
    assert found["dft"] < found["nll"] / 5


def test_dpo(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    callback = LocalizationCallback()
    args = DPOConfig(str(tmp_path), **ARGUMENTS, loss_type="ipo", beta=0.1)
    data = rows("prompt", "chosen", "rejected")
    run = DPOTrainer(unplaced(), args=args, train_dataset=data, processing_class=tokenizer, callbacks=[callback])
    run.train()
    assert callback.reports["default"].loss == pytest.approx(25, rel=1e-4)  # (0 - 1 / (2 beta))^2
    assert first(run, "loss") == pytest.approx(25, rel=1e-4)
    assert len(callback.reports["default"].layers) == 8


def test_reward(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = tiny_llama().config
    config.num_labels = 1
    torch.manual_seed(0)
    model = unplaced(LlamaForSequenceClassification(config), task_type="SEQ_CLS")
    callback = LocalizationCallback()
    args = RewardConfig(str(tmp_path), **ARGUMENTS)
    data = rows("chosen", "rejected")
    run = RewardTrainer(model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[callback])
    run.train()
    assert callback.reports["default"].loss == pytest.approx(first(run, "loss"), rel=1e-5)
    assert first(run, "num_tokens") == sum(
        len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in run.train_dataset
    )


class Watched(GRPOTrainer):
    """Keeps what its loss was asked for."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), dict(inputs)]
        return super().compute_loss(model, inputs, *args, **kwargs)


def grpo(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rewards: list[list[float]]) -> tuple[Watched, Any]:
    """`rewards`: of the four completions of each step."""
    left = iter(rewards)
    callback = LocalizationCallback()
    args = GRPOConfig(str(tmp_path), **ARGUMENTS, num_generations=2, max_completion_length=4, beta=0.0)
    run = Watched(
        unplaced(),
        reward_funcs=lambda completions, **_: next(left),
        args=args,
        train_dataset=rows("prompt"),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    run.train()
    return run, callback


def test_grpo_places_on_the_first_step_s_own_batch(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    run, callback = grpo(tmp_path, tokenizer, [[0.0, 1.0, 2.0, 5.0], [1.0, 0.0, 3.0, 4.0]])
    report = callback.reports["default"]
    assert report.batches == 1
    assert report.loss == pytest.approx(first(run, "loss"), abs=1e-5)
    assert first(run, "calibration")["loss"] == report.loss

    # GRPO's gradient while policy and old policy are the same, written out: sum of advantage x grad log p.
    def written_out(model: Any, batch: Any) -> torch.Tensor:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        length = batch["completion_ids"].shape[1]
        log_p = model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1].log_softmax(-1)
        taken = log_p.gather(-1, batch["completion_ids"][..., None])[..., 0]
        return -(taken * batch["advantages"][:, None] * batch["completion_mask"]).sum()

    again = calibrate(unplaced(), [run.seen[0]], loss_fn=written_out)
    assert [layer.held for layer in report.layers] == pytest.approx([layer.held for layer in again.layers], rel=1e-3)


def test_kto(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    callback = LocalizationCallback()
    args = KTOConfig(str(tmp_path), **ARGUMENTS)
    data = rows("prompt", "completion").add_column("label", [True, False, True, False])
    run = KTOTrainer(unplaced(), args=args, train_dataset=data, processing_class=tokenizer, callbacks=[callback])
    run.train()
    report = callback.reports["default"]
    assert report.loss == pytest.approx(0.5, rel=1e-5)  # 1 - sigmoid(0): the policy is the reference still
    assert first(run, "loss") == pytest.approx(0.5, rel=1e-5)
    assert len(report.layers) == 8


def test_rloo_told_of_its_trainer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    args = RLOOConfig(str(tmp_path), **ARGUMENTS, max_completion_length=6, num_generations=4, beta=0.0)
    run = RLOOTrainer(
        unplaced(),
        reward_funcs=lambda completions, **_: [1.0, 0.0, 3.0, 4.0],
        args=args,
        train_dataset=rows("prompt"),
        processing_class=tokenizer,
    )
    callback = LocalizationCallback.for_trainer(run)
    run.train()
    report = callback.reports["default"]
    assert report.batches == 1
    assert report.loss == pytest.approx(first(run, "loss"), abs=1e-5)
    assert len(report.layers) == 8


def test_grpo_waits_for_a_batch_with_a_gradient(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """Completions rewarded all alike teach nothing, and would place at random."""
    with caplog.at_level(logging.WARNING):
        run, callback = grpo(tmp_path, tokenizer, [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 3.0, 4.0]])
    assert "step 1: the gradient is zero on every adapted layer" in caplog.text
    assert next(entry["step"] for entry in run.state.log_history if "calibration" in entry) == 1
    assert len(callback.reports["default"].layers) == 8


class Tracker(TrainerCallback):
    """A reporter: what it is given at each step."""

    def __init__(self) -> None:
        self.given: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.given.append((state.global_step, dict(logs)))


def test_trackers_get_the_calibration_and_each_event(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tracker, callback = Tracker(), LocalizationCallback()
    data = rows("prompt", "completion")
    run = SFTTrainer(
        unplaced(repartition=[0.5]),
        SFTConfig(str(tmp_path), **ARGUMENTS),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[callback, tracker],
    )
    run.train()
    report, (event,) = callback.reports["default"], callback.repartitioners["default"].events
    given = {key: (step, value) for step, logs in tracker.given for key, value in logs.items()}
    assert given["calibration/default/loss"] == (0, report.loss)
    held = sorted(layer.held for layer in report.layers)
    assert given["calibration/default/held_most"] == (0, held[-1])
    assert given["calibration/default/held_median"] == (0, pytest.approx((held[3] + held[4]) / 2))
    assert given["repartition/default/loss_before"] == (1, event.loss_before)
    assert given["repartition/default/rows_moved"] == (1, event.rows_moved)
    assert all(isinstance(value, int | float) for _, logs in tracker.given for value in logs.values())
    assert first(run, "calibration")["loss"] == report.loss
    assert first(run, "repartition") == event.to_dict()
    # The training loss of the event's step is logged as ever, with TRL's own metrics.
    assert [step for step, logs in tracker.given if "loss" in logs and "mean_token_accuracy" in logs] == [1, 2]
