"""Our experiments for PEFT's method comparison: its loader reads them, and each trains what LoRA trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.method_comparison import METHODS, RATES, run, write
from peft import PeftConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

STAND_IN = """
import json, pathlib, sys
from peft import PeftConfig
from utils import KNOWN
path = pathlib.Path(sys.argv[2])
config = PeftConfig.from_pretrained(path)
assert sys.argv[1] == "-v" and path.parts[0] == "experiments" and len(path.parts) == 3
chosen = json.loads((path / "training_params.json").read_text())
assert set(chosen) <= KNOWN
pathlib.Path("results").mkdir(exist_ok=True)
result = pathlib.Path("results", "--".join(path.parts[1:]) + ".json")
assert not result.exists(), "run twice"
result.write_text(json.dumps([type(config).__name__, chosen["optimizer_kwargs"]["lr"]]))
"""
# fields of TrainConfig in method_comparison/MetaMathQA/utils.py
UTILS = "KNOWN = {'model_id', 'dtype', 'max_steps', 'seed', 'optimizer_type', 'optimizer_kwargs', 'lr_scheduler'}"


@pytest.fixture(scope="module")
def parameters() -> dict[str, int]:
    """Trained by each method on one layer of Llama-3.2-3B's shape, which has no storage."""
    config = LlamaConfig(
        hidden_size=3072, intermediate_size=8192, num_hidden_layers=1, num_attention_heads=24, num_key_value_heads=8
    )
    counts = {}
    for name, method in METHODS.items():
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        model = get_peft_model(model, method, low_cpu_mem_usage=True)
        counts[name] = model.get_nb_trainable_parameters()[0]
    return counts


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_what_lora_trains(parameters: dict[str, int], method: str) -> None:
    assert parameters["lora"] == 32 * (3072 + 3072 + 3072 + 1024)
    assert parameters[method] == pytest.approx(parameters["lora"], rel=0.005)


def test_the_files_hold_what_the_methods_are(tmp_path: Path) -> None:
    experiments = write(tmp_path)
    assert len(experiments) == len(METHODS) * len(RATES)
    for experiment in experiments:
        config = PeftConfig.from_pretrained(str(experiment))
        expected = METHODS[experiment.parent.name]
        assert config.to_dict() == expected.to_dict() | {"inference_mode": config.inference_mode}


@pytest.mark.slow
def test_each_runs_once_in_a_process_that_knows_the_methods(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(STAND_IN)
    (tmp_path / "utils.py").write_text(UTILS)
    experiments = [e for e in write(tmp_path) if e.name.endswith(f"lr_{RATES[0]:g}-seed0")]
    run(tmp_path, experiments)
    run(tmp_path, experiments)
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "results").glob("*.json"))]
    assert results == [
        ["CpsLoraConfig", RATES[0]],
        ["GLoraConfig", RATES[0]],
        ["CpsLoraConfig", RATES[0]],
        ["LoraConfig", RATES[0]],
    ]
