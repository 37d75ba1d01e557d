"""Before the first step: importing the package, and injecting an adapter into a model of 30 layers."""

from __future__ import annotations

from functools import partial

import torch
from benchmarks.speed import isolated
from benchmarks.speed.methods import BY_KEY, with_shared_weights
from benchmarks.speed.store import Cells, Row
from benchmarks.speed.timing import interleave
from benchmarks.speed.workloads import Settings, smollm2
from peft import get_peft_model
from torch import nn

MODULES = ("peft", "localora")
INJECTED = ("peft-lora", "peft-dora", "peft-gralora", "lora", "g-lora", "cps-lora-4", "hybrid")
PLACEMENTS = ("calibrate", "random")


def cells(settings: Settings) -> Cells:
    return {"import": partial(_import, settings), "injection": partial(_inject, settings)}


def _import(settings: Settings) -> list[Row]:
    seconds: dict[str, list[float]] = {name: [] for name in MODULES}
    for number in range(1 + settings.rounds):
        for name in MODULES:
            took = isolated.call("benchmarks.speed.isolated:seconds_to_import", module=name)["seconds"]
            if number:  # the first fills the disk cache
                seconds[name].append(took)
    return [{"module": name, "seconds": seconds[name]} for name in MODULES]


def _inject(settings: Settings) -> list[Row]:
    base = smollm2(1, 8).sized(settings).base(torch.bfloat16, settings)
    calls = {}
    for key in INJECTED:
        for placement in PLACEMENTS if not key.startswith("peft") else ("-",):
            bases = [with_shared_weights(base) for _ in range(settings.rounds + 1)]
            calls[key, placement] = partial(_one_injection, key, placement, bases, settings.r)
    seconds = interleave(calls, settings.rounds, settings.device, warmups=1)
    return [{"method": key, "placement": placement, "seconds": taken} for (key, placement), taken in seconds.items()]


def _one_injection(key: str, placement: str, bases: list[nn.Module], r: int) -> None:
    maker = BY_KEY[key].config
    assert maker is not None
    get_peft_model(bases.pop(), maker(r, 0.0, placement))
