"""lm-evaluation-harness on the same items: it agrees with us item by item, and loads our adapters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import published_files
import tiny_runs
from localora import CpsLoraConfig
from localora.lab.data.example import DataError
from localora.lab.evaluation.lm_eval.harness import TASKS, HarnessScore, evaluate_with_lm_eval
from localora.lab.evaluation.lm_eval.items import score_answer
from localora.lab.evaluation.tasks import TaskResult, evaluate_tasks, load_tasks
from patience import PATIENCE

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
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


@pytest.fixture(scope="module")
def both(tokenizer, folder) -> tuple[dict[str, TaskResult], dict[str, HarnessScore]]:
    """Ours and the harness's results by task, and the harness's start, once for all tests."""
    model = with_adapter(0).train()
    ours = evaluate_tasks(model, tokenizer, load_tasks(NAMES, folder, 3), batch_size=2, max_new_tokens=256)
    theirs = evaluate_with_lm_eval(
        model, tokenizer, [f"localora_{name}" for name in NAMES], data_folder=folder, limit=3, batch_size=2
    )
    assert model.training
    return (
        {result.task.partition(":")[0]: result for result in ours},
        {score.task.removeprefix("localora_"): score for score in theirs},
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_agrees_item_by_item(both, name):
    ours, theirs = both[0][name], both[1][name]
    assert theirs.items == {item.id: float(bool(item.right)) for item in ours.items}
    assert (theirs.value, theirs.interval) == (ours.value, pytest.approx(ours.interval))
    assert theirs.count == len(ours.items)


def test_right_and_wrong_both_occur(both):
    """Else agreement would say little."""
    values = [value for score in both[1].values() for value in score.items.values()]
    assert {0.0, 1.0} == set(values)


def test_what_follows_the_answer_does_not_count():
    row = {"answer": "5"}
    assert score_answer(row, ["2+3\n#### 5\nQuestion: and now?\n#### 6\n"]) == {"exact_match": 1.0}
    assert score_answer(row, ["2+3\n#### 6\n#### 5"]) == {"exact_match": 0.0}
    assert score_answer(row, ["it is 5."]) == {"exact_match": 1.0}


def test_every_task_that_fits_has_its_file():
    from localora.lab.data.published.registry import FAMILIES

    names = {f"localora_{name}" for family in ("commonsense", "math") for name in FAMILIES[family]}
    assert {path.stem for path in TASKS.glob("*.yaml")} == names
    for path in TASKS.glob("*.yaml"):
        assert f"localora_task: {path.stem.removeprefix('localora_')}\n" in path.read_text()


def test_unknown_names(tokenizer):
    with pytest.raises(DataError, match=r"knows no task localora_bolq; of ours it knows .*localora_boolq"):
        evaluate_with_lm_eval(with_adapter(0), tokenizer, ["localora_bolq"])


@pytest.mark.slow
def test_the_harness_command_loads_our_adapter_in_a_fresh_process(folder, tmp_path):
    base = tiny_runs.save_tiny_model(tmp_path / "base")
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base),
        CpsLoraConfig(
            r=4, clusters=2, placement="random", init_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM"
        ),
    )
    model.save_pretrained(tmp_path / "adapter")
    command = [
        *(sys.executable, "-m", "localora.lab.evaluation.lm_eval", "--model", "hf"),
        *("--model_args", f"pretrained={base},peft={tmp_path / 'adapter'},dtype=float32"),
        *("--tasks", "localora_arc_easy", "--metadata", f"data_folder={folder}"),
        *("--output_path", str(tmp_path / "out"), "--log_samples", "--device", "cpu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("samples_*.jsonl")
    theirs = {}
    for line in file.read_text().splitlines():
        sample = json.loads(line)
        theirs[sample["doc"]["id"]] = sample["acc_bytes"]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    (ours,) = evaluate_tasks(model, tokenizer, load_tasks(["arc_easy"], folder))
    assert theirs == {item.id: float(bool(item.right)) for item in ours.items}
    assert len(theirs) == 5
