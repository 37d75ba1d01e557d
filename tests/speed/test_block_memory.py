"""Bytes that a Llama block with adapters keeps for backward, beyond those of the frozen block, to the byte.

A block shows what one layer cannot: q, k and v share their input, and so do gate and up.

Shape legend
    T   tokens
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from benchmarks.speed.counters import SavedBytes
from benchmarks.speed.methods import BY_KEY
from benchmarks.speed.workloads import Settings, TrainingStep, Workload
from transformers import PreTrainedModel

BLOCK = Workload("block", 2, 512, hidden=64, kv=32, mlp=96, heads=2, layers=1, vocabulary=8, tied=False)
T, R = BLOCK.tokens, 4

# (method, base precision, dropout) -> bytes / T beyond the frozen block's. PEFT's LoRA is what ours are held against.
EXPECTED: dict[tuple[str, str, float], float] = {
    ("peft-lora", "fp32", 0.0): 1008.0,
    ("peft-lora", "fp32", 0.1): 3952.0,
    ("peft-lora", "bf16", 0.0): 2032.0,
    ("peft-lora", "bf16", 0.1): 3952.0,
    ("lora", "fp32", 0.0): 896.0,
    ("lora", "fp32", 0.1): 1502.5,
    ("lora", "bf16", 0.0): 511.25,
    ("lora", "bf16", 0.1): 991.25,
    ("g-lora", "fp32", 0.0): 896.0,
    ("g-lora", "fp32", 0.1): 1692.25,
    ("g-lora", "bf16", 0.0): 606.125,
    ("g-lora", "bf16", 0.1): 1086.125,
    ("cps-lora-2", "fp32", 0.0): 896.0,
    ("cps-lora-2", "fp32", 0.1): 1629.0,
    ("cps-lora-2", "bf16", 0.0): 574.5,
    ("cps-lora-2", "bf16", 0.1): 1054.5,
    ("cps-lora-4", "fp32", 0.0): 896.0,
    ("cps-lora-4", "fp32", 0.1): 1882.0,
    ("cps-lora-4", "bf16", 0.0): 701.0,
    ("cps-lora-4", "bf16", 0.1): 1181.0,
    ("cps-lora-8", "fp32", 0.0): 896.0,
    ("cps-lora-8", "fp32", 0.1): 2388.0,
    ("cps-lora-8", "bf16", 0.0): 954.0,
    ("cps-lora-8", "bf16", 0.1): 1434.0,
    ("hybrid", "fp32", 0.0): 896.0,
    ("hybrid", "fp32", 0.1): 1692.25,
    ("hybrid", "bf16", 0.0): 606.125,
    ("hybrid", "bf16", 0.1): 1086.125,
}


@functools.cache
def base(precision: str) -> PreTrainedModel:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    return BLOCK.base(dtype, Settings(Path(), random=True))


@functools.cache
def saved(method: str, precision: str, dropout: float) -> int:
    torch.manual_seed(0)
    model = BY_KEY[method].wrap(base(precision), R, dropout).train()
    settings = Settings(Path(), random=True)
    step = TrainingStep(BY_KEY[method], model, BLOCK.token_batch(settings), settings.device)
    step()
    return SavedBytes([*model.parameters(), *model.buffers()]).record(step.loss)


def beyond_floor(method: str, precision: str, dropout: float) -> float:
    return (saved(method, precision, dropout) - saved("floor", precision, 0.0)) / T


@pytest.mark.parametrize(("method", "precision", "dropout"), EXPECTED)
def test_saved_bytes_of_a_block_are_exactly_these(method: str, precision: str, dropout: float) -> None:
    assert beyond_floor(method, precision, dropout) == EXPECTED[method, precision, dropout]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("method", ["lora", "g-lora", "cps-lora-2", "cps-lora-4", "cps-lora-8", "hybrid"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_method_keeps_more_than_pefts_lora(method: str, precision: str, dropout: float) -> None:
    assert saved(method, precision, dropout) <= saved("peft-lora", precision, dropout)
