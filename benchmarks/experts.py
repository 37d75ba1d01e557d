"""What a training step of adapters on experts takes, over PEFT's LoRA with the same `target_parameters`.

    python -m benchmarks.experts --rounds 9

Models of two layers with random weights; all methods over the same frozen weights and one batch, one after the other in
each round. Medians of the rounds' ratios, and in brackets their quartiles.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from benchmarks.speed.timing import interleave, ratio
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from localora import CpsLoraConfig, GLoraConfig

STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
R, EXAMPLES, LENGTH = 8, 4, 128


def models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    shared = {"vocab_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4}
    mixtral = MixtralConfig(
        **shared, hidden_size=512, intermediate_size=1024, num_local_experts=8, num_experts_per_tok=2
    )
    qwen = Qwen3MoeConfig(
        **shared, hidden_size=512, intermediate_size=1024, moe_intermediate_size=192, num_experts=32,
        num_experts_per_tok=4, head_dim=64,
    )  # fmt: skip
    return {
        "Mixtral, 8 experts of 2048 x 512": MixtralForCausalLM(mixtral),
        "Qwen3-MoE, 32 experts of 384 x 512": Qwen3MoeForCausalLM(qwen),
    }


def configs() -> dict[str, PeftConfig]:
    where = {"target_modules": [], "target_parameters": STACKS}
    return {
        "peft-lora": LoraConfig(r=R, **where),
        "lora": GLoraConfig(r=R, global_share=1.0, **where),
        "g-lora": GLoraConfig(r=R, placement="random", **where),
        "cps-lora-4": CpsLoraConfig(r=R, clusters=4, placement="random", **where),
        "hybrid": CpsLoraConfig(r=R, clusters=4, global_share=0.5, placement="random", **where),
    }


def step(base: PreTrainedModel, config: PeftConfig, batch: dict[str, Tensor]) -> Callable[[], None]:
    model = get_peft_model(copy.deepcopy(base), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def call() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    tokens = torch.randint(3, 1024, (EXAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
    for title, base in models().items():
        calls = {key: step(base, config, {"input_ids": tokens, "labels": tokens}) for key, config in configs().items()}
        seconds = interleave(calls, rounds, torch.device("cpu"))
        print(title)
        for key, own in seconds.items():
            low, middle, high = ratio(own, seconds["peft-lora"])
            print(f"  {key:<10} {middle:.3f}  ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
