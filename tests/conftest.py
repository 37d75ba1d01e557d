"""Fixtures of all tests: tiny models, fresh for each test, and one thread, since the tensors are tiny too."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM

import adapted_models
import tiny_models

torch.set_num_threads(1)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return tiny_models.tiny_llama()


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    return tiny_models.tiny_gpt2()


@pytest.fixture
def mlp() -> tiny_models.Mlp:
    return tiny_models.Mlp()


@pytest.fixture
def base_logits(llama: LlamaForCausalLM) -> torch.Tensor:
    return adapted_models.logits(llama.eval())
