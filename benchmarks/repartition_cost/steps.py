"""What a training step costs after events: `python -m benchmarks.repartition_cost.steps`.

A small Llama, the same for all; steps of adapters with 0, 1, 3 and 7 events behind them, their frozen terms beside the
base weights ("factors") or in them ("merged"), taken in turn, each over the one without events of the same round.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.timing import Spread, interleave, ratio
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from localora import CpsLoraConfig, Repartitioner, adapter_size
from localora.lab.machine import describe_machine

EVENTS = (0, 1, 3, 7)
MODES = ("factors", "merged")
RESULT = Path(__file__).parent / "results" / "steps.json"


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    tokens = torch.randint(0, 512, (options.batch, options.length), device=device)
    calls, sizes = {}, {}
    plain = get_peft_model(_base(options, dtype), LoraConfig(r=options.r, target_modules="all-linear")).to(device)
    calls["PEFT's LoRA"] = _step(plain, tokens)
    for clusters in options.clusters:
        for mode in MODES:
            for events in EVENTS if mode == "factors" else EVENTS[1:]:
                model = _after(events, mode, clusters, options, dtype).to(device)
                key = f"K {clusters}, {mode}, {events}"
                calls[key] = _step(model, tokens)
                sizes[key] = adapter_size(model)
    seconds = interleave(calls, options.rounds, device)
    rows = [_row(key, seconds, sizes.get(key)) for key in calls]
    chosen = {name: str(value) for name, value in vars(options).items() if name != "out"}
    result = {"options": chosen, "machine": describe_machine(), "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(f"{row['what']:<24} {row['seconds'][1]:.4f} s  x {row['ratio'][1]:.3f} ({row['ratio'][0]:.3f}"
              f" to {row['ratio'][2]:.3f})  rank {row['rank']}  stored {row['stored']}")  # fmt: skip


def _row(key: str, seconds: dict[str, list[float]], size: Any) -> dict[str, Any]:
    clusters = key.split(",")[0]
    beside = f"{clusters}, factors, 0" if key.startswith("K ") else key
    return {
        "what": key,
        "seconds": [round(value, 5) for value in Spread.of(seconds[key])],
        "ratio": [round(value, 4) for value in ratio(seconds[key], seconds[beside])],
        "over_peft_lora": [round(value, 4) for value in ratio(seconds[key], seconds["PEFT's LoRA"])],
        "rank": size and size.rank,
        "stored": size and size.stored,
    }


def _base(options: argparse.Namespace, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 64,
    )
    return LlamaForCausalLM(config).to(dtype).train()


def _after(events: int, mode: str, clusters: int, options: argparse.Namespace, dtype: torch.dtype) -> nn.Module:
    config = CpsLoraConfig(
        r=options.r, clusters=clusters, placement="random", target_modules="all-linear", init_weights=False,
        repartition=[], repartition_every=1, repartition_place="random", frozen=mode,  # type: ignore[arg-type]
    )  # fmt: skip
    model = get_peft_model(_base(options, dtype), config)  # type: ignore[arg-type]
    tokens = torch.randint(0, 512, (1, 8))
    batch = {"input_ids": tokens, "labels": tokens}
    repartitioner = Repartitioner(model, None, events + 1, [batch])
    for _ in range(events):
        repartitioner.step()
    return model


def _step(model: nn.Module, tokens: torch.Tensor) -> Any:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repartition_cost.steps", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--clusters", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser


if __name__ == "__main__":
    main()
