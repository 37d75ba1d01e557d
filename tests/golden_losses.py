"""Short seeded training runs of every method, whose losses are kept in `golden_losses.json` and compared.

A platform is a kind of machine and the instructions that PyTorch's kernels use on it: another order of sums rounds
otherwise. `make golden-losses` writes the curves of the platform it runs on, after a change meant to alter them.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from localora import Repartitioner, calibrate
from method_table import BY_NAME
from tiny_models import LLAMA_TARGETS, tiny_llama, token_batch

FILE = Path(__file__).with_suffix(".json")
STEPS = 12
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora-by-share", {}),
    "g-lora": ("g-lora", {}),
    "cps-lora": ("cps-lora", {}),
    "hybrid": ("hybrid", {}),
    "cps-lora with an event": ("cps-lora", {"repartition": [0.5]}),
}


def platform_key() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def losses(run: str) -> list[float]:
    """Of four batches of a tiny Llama, gone through three times: calibrated, then trained with AdamW."""
    method, options = RUNS[run]
    batches = [token_batch(seed) for seed in range(4)]
    torch.manual_seed(0)
    start = {"target_modules": LLAMA_TARGETS, "placement": "calibrate", "init_weights": True}
    model = get_peft_model(tiny_llama(), BY_NAME[method].config(**start, **options)).train()
    if BY_NAME[method].places:
        calibrate(model, batches)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # With Adam's own eps an entry whose gradient is rounding alone would make a whole step, along its sign.
    optimizer = torch.optim.AdamW(trained, lr=0.02, eps=1e-4)
    repartitioner = Repartitioner(model, optimizer, STEPS, batches)
    curve = []
    for step in range(STEPS):
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        repartitioner.step()
        curve.append(loss.item())
    return curve


def main() -> None:
    torch.set_num_threads(1)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    known[platform_key()] = {run: losses(run) for run in RUNS}
    lines = [
        f'  "{key}": {{\n'
        + ",\n".join(f'    "{run}": {json.dumps([round(x, 6) for x in curve])}' for run, curve in curves.items())
        + "\n  }"
        for key, curves in sorted(known.items())
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{FILE.name}: {platform_key()}")


if __name__ == "__main__":
    main()
