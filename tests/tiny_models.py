"""Models small enough for whole-tensor comparisons: a Llama with grouped queries, a GPT-2 (Conv1D), and an MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

VOCABULARY = 64
LLAMA_TARGETS = ["q_proj", "k_proj", "gate_proj", "down_proj"]  # 32 x 32, 16 x 32, 48 x 32, 32 x 48
GPT2_TARGETS = ["c_attn", "c_fc"]  # 96 x 32 and 128 x 32, stored transposed
MLP_TARGETS = ["first", "second"]


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.2,  # activations of ordinary size, so that a wrong update shows
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


class Mlp(nn.Module):
    """20 inputs, two linear layers, one output a row; `forward` takes a batch as language models do."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(20, 24)
        self.second = nn.Linear(24, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return {"logits": logits} if labels is None else {"loss": (logits - labels).square().mean(), "logits": logits}


def token_batch(seed: int = 0, examples: int = 3, length: int = 10) -> dict[str, Tensor]:
    """Random tokens, never the padding token; labels are the tokens with a masked prompt of three."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCABULARY, (examples, length), generator=generator)
    labels = tokens.clone()
    labels[:, :3] = -100
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def mlp_batch(seed: int = 0, examples: int = 12) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(examples, 20, generator=generator),
        "labels": torch.randn(examples, 1, generator=generator),
    }
