"""Inference: prefill and one-token decode, with the adapter beside the weights and merged into them."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import torch
from benchmarks.speed.methods import BY_KEY, FLOOR, Method, for_dtype
from benchmarks.speed.store import Cells, Row
from benchmarks.speed.timing import interleave
from benchmarks.speed.workloads import DTYPES, Settings, Workload, llama_block, smollm2
from torch import Tensor, nn

from localora import hold_factors

WORKLOADS = (smollm2(4, 128), llama_block())
MERGED = ("peft-lora", "lora", "g-lora", "cps-lora-4", "hybrid")
DECODED = 8  # tokens decoded a sample: one alone is too short to time


class Decoder:
    """Feeds one token a sequence to a model that holds a prompt, and takes it back out of the cache."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor], method: Method, device: torch.device) -> None:
        self.model, self.method, self.device = model, method, device
        self.prompt = batch["input_ids"]
        self.cache = self._run(self.prompt, None)
        self.token = self.prompt[:, -1:]

    def prefill(self) -> None:
        self._run(self.prompt, None)

    def decode(self) -> None:
        for _ in range(DECODED):
            self.cache = self._run(self.token, self.cache)
            self.cache.crop(-1)

    @torch.inference_mode()
    def _run(self, ids: Tensor, cache: object) -> object:
        with self.method.precision(self.device):
            return self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values


def cells(settings: Settings) -> Cells:
    """Every workload and precision, un-merged and merged."""
    made: Cells = {}
    for workload in WORKLOADS:
        for precision, dtype in DTYPES.items():
            title, sized = f"{workload.title}, {precision}", workload.sized(settings)
            made[f"un-merged, {title}"] = lambda w=sized, dtype=dtype: _unmerged(w, dtype, settings)
            made[f"merged, {title}"] = lambda w=sized, dtype=dtype: _merged(w, dtype, settings)
    return made


def _unmerged(workload: Workload, dtype: torch.dtype, settings: Settings) -> list[Row]:
    base = workload.base(dtype, settings)
    return _measure(workload, settings, {m.key: (m, m.wrap(base, settings.r)) for m in for_dtype(dtype)})


def _merged(workload: Workload, dtype: torch.dtype, settings: Settings) -> list[Row]:
    """Merged in place, the adapter layers still there: what `merge_adapter` leaves. Weights are not shared here.

    The frozen base stands twice in the table, to show what is noise.
    """
    base = workload.base(dtype, settings)
    models: dict[str, tuple[Method, nn.Module]] = {
        FLOOR.key: (FLOOR, base),
        "floor-again": (FLOOR, copy.deepcopy(base)),
    }
    for key in MERGED:
        model = BY_KEY[key].wrap(copy.deepcopy(base), settings.r, share=False)
        model.merge_adapter()
        models[key] = (BY_KEY[key], model)
    return _measure(workload, settings, models)


def _measure(workload: Workload, settings: Settings, models: dict[str, tuple[Method, nn.Module]]) -> list[Row]:
    batch = workload.token_batch(settings)
    decoders = {key: Decoder(model.eval(), batch, method, settings.device) for key, (method, model) in models.items()}
    prefill = interleave({key: d.prefill for key, d in decoders.items()}, settings.rounds, settings.device)
    with ExitStack() as stack:
        for _, model in models.values():
            stack.enter_context(hold_factors(model))  # as `generate` does
        decode = interleave({key: d.decode for key, d in decoders.items()}, settings.rounds, settings.device)
    return [
        {"method": key, "prefill_seconds": prefill[key], "decode_seconds": [s / DECODED for s in decode[key]]}
        for key in decoders
    ]
