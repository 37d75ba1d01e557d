"""How cost grows: one block, one quantity varied at a time, bf16."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from benchmarks.speed.methods import BY_KEY, FLOOR, PEFT_LORA, Method, cps_with
from benchmarks.speed.store import Cells, Row
from benchmarks.speed.timing import interleave
from benchmarks.speed.training import saved_bytes, steps
from benchmarks.speed.workloads import Settings, TrainingStep, Workload, plain_block

from localora import CpsLoraConfig, Repartitioner, calibrate

DTYPE = torch.bfloat16
CURVES = ("floor", "peft-lora", "lora", "g-lora", "cps-lora-4")
RANKS = (8, 16, 32, 64, 128, 256)
CLUSTERS = (1, 2, 4, 8, 16)
HIDDEN = (512, 1024, 2048, 4096)
TOKENS = (128, 256, 512, 1024, 2048)
WIDE, MANY_TOKENS, RANK = 1024, 512, 16


def cells(settings: Settings) -> Cells:
    """Steps against rank, clusters, hidden size and tokens; calibration and re-partition against size."""
    curves = [BY_KEY[key] for key in CURVES]
    made: Cells = {}
    for r in RANKS:
        made[f"rank {r}"] = partial(_point, plain_block(WIDE, MANY_TOKENS), r, curves, settings)
    made["clusters"] = partial(
        _point, plain_block(WIDE, MANY_TOKENS), RANK, [FLOOR, PEFT_LORA, *map(cps_with, CLUSTERS)], settings
    )
    for hidden in HIDDEN:
        made[f"hidden {hidden}"] = partial(_point, plain_block(hidden, MANY_TOKENS), RANK, curves, settings)
        made[f"placing {hidden}"] = partial(_placing, plain_block(hidden, MANY_TOKENS), settings)
    for tokens in TOKENS:
        made[f"tokens {tokens}"] = partial(_point, plain_block(WIDE, tokens), RANK, curves, settings)
    return made


def _point(workload: Workload, r: int, methods: list[Method], settings: Settings) -> list[Row]:
    workload = workload.sized(settings)
    calls = steps(workload, DTYPE, settings, methods, min(r, 4) if settings.tiny else r)
    seconds = interleave(calls, settings.rounds, settings.device)
    return [
        {
            "method": key,
            "r": r,
            **_size(workload),
            "seconds": seconds[key],
            "saved_bytes": saved_bytes(calls[key]),
            "trainable": calls[key].trainable,
        }
        for key in calls
    ]


def _placing(workload: Workload, settings: Settings) -> list[Row]:
    workload = workload.sized(settings)
    base, batch = workload.base(DTYPE, settings), workload.token_batch(settings)
    step = TrainingStep(PEFT_LORA, PEFT_LORA.wrap(base, settings.r).train(), batch, settings.device)
    calls: dict[str, Any] = {"peft-lora step": step}
    for key in ("g-lora", "cps-lora-4"):
        model = BY_KEY[key].wrap(base, settings.r, placement="calibrate").train()
        calls[f"{key} calibration"] = partial(calibrate, model, [batch], steps=1, replace=True)
    calls["cps-lora-4 re-partition"] = _repartition(base, batch, settings)
    seconds = interleave(calls, settings.rounds, settings.device, warmups=1)
    return [{"what": key, **_size(workload), "seconds": taken} for key, taken in seconds.items()]


def _repartition(base: torch.nn.Module, batch: dict[str, torch.Tensor], settings: Settings) -> Any:
    """One event on one batch, of an adapter that is not zero; random labels, so that rows and columns do move."""

    def config(r: int, dropout: float, placement: str) -> CpsLoraConfig:
        return CpsLoraConfig(
            r=r, placement="random", init_weights=False, repartition=[1.0], target_modules="all-linear"
        )

    model = Method("cps-lora-4", "", config).wrap(base, settings.r).train()
    return lambda: Repartitioner(model, None, 1, [batch], steps=1).step()


def _size(workload: Workload) -> dict[str, int]:
    return {"hidden": workload.hidden, "tokens": workload.tokens, "block_parameters": workload.block_parameters}
