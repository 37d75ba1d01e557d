"""Tiny mixtures of experts: Mixtral and Qwen3-MoE store a matrix as outputs x inputs, gpt-oss the other way round."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tiny_models import VOCABULARY

EXPERTS, LAYERS = 4, 2
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]  # 48 x 32 and 32 x 24, an expert
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = ("mixtral", "qwen3-moe", "gpt-oss")


def tiny_experts(kind: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**_COMMON, num_local_experts=EXPERTS))
    if kind == "gpt-oss":
        return GptOssForCausalLM(GptOssConfig(**_COMMON, num_local_experts=EXPERTS))
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**_COMMON, num_experts=EXPERTS, moe_intermediate_size=24, norm_topk_prob=True)
    )
