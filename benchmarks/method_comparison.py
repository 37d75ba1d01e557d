"""Experiments for PEFT's public method comparison (MetaMathQA, Llama-3.2-3B): `python -m benchmarks.method_comparison`.

    python -m benchmarks.method_comparison PEFT/method_comparison/MetaMathQA            # writes its experiments/
    python -m benchmarks.method_comparison PEFT/method_comparison/MetaMathQA --run      # and runs what has no result

PEFT is a checkout of huggingface/peft; running wants one GPU, the Hub and that folder's requirements. Every method
trains LoRA's number of parameters at rank 32 on q_proj and v_proj, at each of three learning rates, LoRA too. Clusters
and blocks are random, and nothing happens in training, since that comparison has a training loop of its own and gives a
method no batch before it begins. Nothing was run yet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from peft import LoraConfig, PeftConfig

from localora import CpsLoraConfig, GLoraConfig
from localora.adapter.config import ALPHA_PER_RANK

RANK, RATES, SEEDS = 32, (1e-4, 3e-4, 1e-3), (0,)
COMMON = {"r": RANK, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
METHODS: dict[str, PeftConfig] = {
    "lora": LoraConfig(lora_alpha=ALPHA_PER_RANK * RANK, **COMMON),
    "cps-lora": CpsLoraConfig(clusters=2, placement="random", **COMMON),
    "g-lora": GLoraConfig(placement="random", **COMMON),
    "hybrid": CpsLoraConfig(clusters=2, global_share=0.5, placement="random", **COMMON),
}

START = """
import runpy, sys
import localora
sys.path.insert(0, "")
sys.argv[0] = "run.py"
runpy.run_path("run.py", run_name="__main__")
"""


def write(folder: Path) -> list[Path]:
    """The experiments, experiments/METHOD/NAME each with adapter_config.json and training_params.json."""
    written = []
    for method, config in METHODS.items():
        for rate in RATES:
            for seed in SEEDS:
                experiment = folder / "experiments" / method / f"llama-3.2-3B-rank{RANK}-lr_{rate:g}-seed{seed}"
                config.save_pretrained(str(experiment))
                chosen = {"optimizer_kwargs": {"lr": rate, "weight_decay": 0.1}, "seed": seed}
                (experiment / "training_params.json").write_text(json.dumps(chosen, indent=2) + "\n")
                written.append(experiment)
    return written


def run(folder: Path, experiments: list[Path]) -> None:
    """One after the other, each in a process of its own that knows our methods. What has a result is not run again.

    Raises:
        subprocess.CalledProcessError: an experiment failed; it has said why.
    """
    for experiment in experiments:
        name = experiment.relative_to(folder)
        result = "--".join(name.parts[1:]) + "*.json"
        if not any(list((folder / kind).glob(result)) for kind in ("results", "temporary_results")):
            subprocess.run([sys.executable, "-c", START, "-v", str(name)], cwd=folder, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="method_comparison/MetaMathQA of a checkout of PEFT")
    parser.add_argument("--run", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if not (folder / "run.py").exists():
        sys.exit(f"error: {folder} has no run.py; give method_comparison/MetaMathQA of a checkout of huggingface/peft")
    experiments = write(folder)
    print(f"{len(experiments)} experiments in {folder / 'experiments'}")
    if arguments.run:
        run(folder, experiments)


if __name__ == "__main__":
    main()
