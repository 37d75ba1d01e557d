"""Adapter files: seconds to save and to load, and bytes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from benchmarks.speed.methods import BY_KEY, with_shared_weights
from benchmarks.speed.store import Cells, Row
from benchmarks.speed.timing import interleave
from benchmarks.speed.workloads import Settings, smollm2
from peft import PeftModel

SAVED = ("peft-lora", "peft-dora", "peft-gralora", "lora", "g-lora", "cps-lora-2", "cps-lora-4", "cps-lora-8", "hybrid")
RANKS = (8, 32)


def cells(settings: Settings) -> Cells:
    """SmolLM2's 210 matrices at two ranks; load is `PeftModel.from_pretrained`, so injection is part of it."""
    ranks = (2, 4) if settings.tiny else RANKS
    return {f"SmolLM2-135M, r {r}": lambda r=r: _files(r, settings) for r in ranks}


def _files(r: int, settings: Settings) -> list[Row]:
    base = smollm2(1, 8).sized(settings).base(torch.bfloat16, settings)
    folder = Path(tempfile.mkdtemp(prefix="localora-speed-"))
    try:
        models = {key: BY_KEY[key].wrap(base, r) for key in SAVED}
        save = interleave(
            {key: lambda key=key, model=model: model.save_pretrained(folder / key) for key, model in models.items()},
            settings.rounds,
            settings.device,
        )
        targets = {key: [with_shared_weights(base) for _ in range(settings.rounds + 1)] for key in SAVED}
        load = interleave(
            {key: lambda key=key: PeftModel.from_pretrained(targets[key].pop(), folder / key) for key in SAVED},
            settings.rounds,
            settings.device,
            warmups=1,
        )
        size = {key: (folder / key / "adapter_model.safetensors").stat().st_size for key in SAVED}
    finally:
        shutil.rmtree(folder)
    return [
        {"method": key, "file_bytes": size[key], "save_seconds": save[key], "load_seconds": load[key]} for key in SAVED
    ]
