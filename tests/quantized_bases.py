"""Small Llamas on every quantized base that installs on a CPU; a test of one whose package is absent is skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tiny_models import VOCABULARY


@dataclass(frozen=True)
class Base:
    """A base, and what may be expected of it.

    Attributes:
        package: what must be installed.
        load: the model of a folder, quantized.
        coarseness: relative error of a weight that is rounded to its grid, at most; a merge loses as much.
        noise: relative error of a layer's output against the weights it says it has, where activations are rounded too.
        reads: whether its layers give their weights back.
    """

    name: str
    package: str
    load: Callable[[Path], nn.Module]
    coarseness: float
    noise: float = 1e-5
    reads: bool = True


def _by_transformers(folder: Path, config: Any) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)


def _bitsandbytes(folder: Path, **options: Any) -> nn.Module:
    from transformers import BitsAndBytesConfig

    return _by_transformers(folder, BitsAndBytesConfig(**options))


def _nf4(folder: Path, nested: bool) -> nn.Module:
    return _bitsandbytes(
        folder,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=nested,
    )


def _torchao(folder: Path, bits: int) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import TorchAoConfig

    four = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))  # Int4WeightOnlyConfig needs a GPU
    return _by_transformers(folder, TorchAoConfig(Int8WeightOnlyConfig() if bits == 8 else four))


def _hqq(folder: Path) -> nn.Module:
    """By hqq itself: transformers 5.24 marks the layers for it, and leaves them as they are."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    def quantized(linear: nn.Linear) -> nn.Module:
        config = BaseQuantizeConfig(nbits=4, group_size=64)
        return HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")

    return _with_layers(folder, torch.float32, quantized)


def _gptqmodel(folder: Path, awq: bool) -> nn.Module:
    """Layers as of a checkpoint, rounded to the nearest: gptqmodel computes them in half precision alone."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    def quantized(linear: nn.Linear) -> nn.Module:
        (m, n), group = linear.weight.shape, 32
        scales = linear.weight.detach().float().view(m, n // group, group).abs().amax(-1) / 7
        kind = AwqTorchLinear if awq else TorchLinear
        layer = kind(bits=4, group_size=group, sym=True, desc_act=False, in_features=n, out_features=m, bias=False)
        layer.optimized = True  # not compiled
        pack = layer.pack if awq else layer.pack_original  # the other compiles an extension first
        pack(linear.float(), scales, torch.full_like(scales, 8), torch.arange(n, dtype=torch.int32) // group)
        layer.post_init()
        return layer

    return _with_layers(folder, torch.bfloat16, quantized)


def _with_layers(folder: Path, dtype: torch.dtype, quantized: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, quantized(linear))
    return model


BASES = (
    Base("bnb-8bit", "bitsandbytes", lambda folder: _bitsandbytes(folder, load_in_8bit=True), 0.02, noise=0.03),
    Base("bnb-4bit", "bitsandbytes", lambda folder: _nf4(folder, nested=False), 0.15),
    Base("bnb-4bit-nested", "bitsandbytes", lambda folder: _nf4(folder, nested=True), 0.15),
    Base("torchao-int8", "torchao", lambda folder: _torchao(folder, 8), 0.02),
    Base("torchao-int4", "torchao", lambda folder: _torchao(folder, 4), 0.2),
    Base("hqq-4bit", "hqq", _hqq, 0.2),
    Base("gptq-4bit", "gptqmodel", lambda folder: _gptqmodel(folder, awq=False), 0.2, noise=0.03, reads=False),
    Base("awq-4bit", "gptqmodel", lambda folder: _gptqmodel(folder, awq=True), 0.2, noise=0.03, reads=False),
)
every_base = pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
every_base_that_reads = pytest.mark.parametrize("base", [b for b in BASES if b.reads], ids=lambda base: base.name)
every_base_that_does_not = pytest.mark.parametrize(
    "base", [b for b in BASES if not b.reads], ids=lambda base: base.name
)


def save_llama(folder: Path) -> Path:
    """A random Llama whose matrices are multiples of 64, the smallest group of any of these bases."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load(base: Base, folder: Path) -> nn.Module:
    pytest.importorskip(base.package, reason=f"needs {base.package}")
    return base.load(folder)
