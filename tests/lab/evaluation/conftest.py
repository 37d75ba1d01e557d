"""A random two-layer Llama over bytes, in float64 so that batches and single rows agree; and whether boxes work."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(["<s>", "</s>", *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,  # far from uniform, so that a wrong position shows
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        attention_dropout=0.5,  # a forgotten eval mode shows
    )
    return LlamaForCausalLM(config).double().train()


@pytest.fixture(scope="session")
def bubblewrap() -> None:
    """For tests that need a box: skipped where bubblewrap itself says that it cannot make one."""
    if shutil.which("bwrap") is None:
        pytest.skip("needs Linux and bubblewrap (apt install bubblewrap)")
    trial = subprocess.run(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True, text=True)
    if trial.returncode != 0:
        pytest.skip(f"no namespaces here: {trial.stderr.strip()}")
