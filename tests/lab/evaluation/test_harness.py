"""lm-evaluation-harness on the same items: it agrees with us item by item, and loads our adapters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import published_files
import tiny_runs
from localora import CpsLoraConfig
from localora.lab.data.example import Scorer
from localora.lab.evaluation.answers import matches
from localora.lab.evaluation.score import ANSWER_COMPLETE
from localora.lab.evaluation.tasks import LoadedTask, TaskResult, evaluate_tasks, load_tasks

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own
NAMES = ("boolq", "siqa", "arc_easy", "gsm8k", "aqua")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_files.write_tasks(tmp_path_factory.mktemp("data"))


def with_adapter(seed: int) -> PeftModel:
    """An adapter that changes what the model says: placed at random, with a non-zero update."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    adapter = CpsLoraConfig(
        r=4, clusters=2, placement="random", init_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM"
    )
    return get_peft_model(LlamaForCausalLM(config).double(), adapter)


def as_the_harness_has_it(task: LoadedTask) -> dict[str, Any]:
    """A config of the harness with a task's items: likelihood per byte, or the answer in a generated text."""
    from datasets import Dataset, DatasetDict

    common = {
        "task": f"ours_{task.name.task.name}", "test_split": "test", "num_fewshot": 0, "doc_to_text": "prompt",
    }  # fmt: skip
    if task.scorer is Scorer.multiple_choice:
        rows = [
            {"prompt": e.prompt, "choices": [c.strip() for c in e.choices], "answer": e.answer_index}
            for e in task.examples
        ]
        own: dict[str, Any] = {
            "output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer",
            "target_delimiter": " ", "metric_list": [{"metric": "acc_bytes", "aggregation": "mean"}],
        }  # fmt: skip
    else:
        rows = [{"prompt": e.prompt, "completion": e.completion, "answer": e.answer} for e in task.examples]
        own = {
            "output_type": "generate_until", "doc_to_target": "completion", "target_delimiter": "",
            "process_results": exact_match, "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
            "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 256},
        }  # fmt: skip
    data = DatasetDict({"test": Dataset.from_list(rows)})
    return {**common, **own, "custom_dataset": lambda **_: data}


def exact_match(row: dict[str, Any], outputs: list[str]) -> dict[str, float]:
    """In the text up to where our own generation stops."""
    end = re.search(ANSWER_COMPLETE, outputs[0])
    return {"exact_match": float(matches(outputs[0][: end.end()] if end else outputs[0], row["answer"]))}


def measured(tasks: list[LoadedTask], **model: Any) -> dict[str, Any]:
    """The harness's results, without the ten thousand tasks of its own."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    configs = [as_the_harness_has_it(task) for task in tasks]
    results: dict[str, Any] = lm_eval.simple_evaluate(tasks=configs, task_manager=manager, device="cpu", **model)
    return results


METRIC = {"gsm8k": "exact_match", "aqua": "exact_match"}  # of the others acc_bytes


@pytest.fixture(scope="module")
def both(tokenizer, folder) -> tuple[dict[str, TaskResult], dict[str, Any]]:
    """Ours by task, and the harness's, once for all tests."""
    from lm_eval.models.huggingface import HFLM

    model = with_adapter(0).eval()
    tasks = load_tasks(NAMES, folder, 3)
    ours = evaluate_tasks(model, tokenizer, tasks, batch_size=2, max_new_tokens=256)
    theirs = measured(tasks, model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2))
    return {result.task.partition(":")[0]: result for result in ours}, theirs


@pytest.mark.parametrize("name", NAMES)
def test_it_agrees_item_by_item(both, name):
    ours, theirs, metric = both[0][name], both[1], METRIC.get(name, "acc_bytes")
    assert [item[metric] for item in theirs["samples"][f"ours_{name}"]] == [float(bool(x.right)) for x in ours.items]
    assert theirs["results"][f"ours_{name}"][f"{metric},none"] == ours.value


def test_right_and_wrong_both_occur(both):
    """Else agreement would say little."""
    assert {item.right for result in both[0].values() for item in result.items} == {True, False}


def test_the_harness_loads_our_adapter_where_localora_is_imported(folder, tmp_path):
    from transformers import AutoTokenizer

    base = tiny_runs.save_tiny_model(tmp_path / "base")
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base),
        CpsLoraConfig(
            r=4, clusters=2, placement="random", init_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM"
        ),
    )
    model.save_pretrained(tmp_path / "adapter")
    tasks = load_tasks(["arc_easy"], folder)
    theirs = measured(tasks, model="hf", model_args=f"pretrained={base},peft={tmp_path / 'adapter'},dtype=float32")[
        "samples"
    ]["ours_arc_easy"]
    (ours,) = evaluate_tasks(model, AutoTokenizer.from_pretrained(base), tasks)
    assert [item["acc_bytes"] for item in theirs] == [float(bool(item.right)) for item in ours.items]
    assert len(theirs) == 5
