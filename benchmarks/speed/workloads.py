"""Models and batches the methods run on, and one training step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from benchmarks.speed.methods import Method
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from localora.lab.model.base import load_base_model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Settings:
    """What the command line chose."""

    out: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rounds: int = 7
    random: bool = False  # SmolLM2's architecture with random weights: nothing is fetched
    tiny: bool = False  # everything small: shows that the script works, measures nothing
    until: float = float("inf")  # of time.monotonic(): no cell is begun later

    @property
    def r(self) -> int:
        return 4 if self.tiny else 16


@dataclass(frozen=True)
class Workload:
    """A Llama-shaped model and the size of its batch."""

    name: str
    batch: int
    length: int
    hidden: int
    kv: int
    mlp: int
    heads: int
    layers: int
    vocabulary: int
    tied: bool = True
    pretrained: str | None = None

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def title(self) -> str:
        return f"{self.name}, {self.batch} x {self.length} tokens"

    @property
    def block_parameters(self) -> int:
        """Weights of the linear layers, which the adapters sit on."""
        return self.layers * (2 * self.hidden * (self.hidden + self.kv) + 3 * self.hidden * self.mlp)

    def sized(self, settings: Settings) -> Workload:
        """The same, or a toy of it."""
        if not settings.tiny:
            return self
        return replace(
            self, batch=2, length=8, hidden=64, kv=32, mlp=96, heads=2, layers=min(self.layers, 2), vocabulary=64
        )

    def base(self, dtype: torch.dtype, settings: Settings) -> PreTrainedModel:
        """The frozen model in train mode."""
        if self.pretrained and not (settings.random or settings.tiny):
            model, _ = load_base_model(self.pretrained, dtype)
        else:
            torch.manual_seed(0)
            config = LlamaConfig(
                hidden_size=self.hidden,
                intermediate_size=self.mlp,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.heads * self.kv // self.hidden,
                vocab_size=self.vocabulary,
                tie_word_embeddings=self.tied,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
            model = LlamaForCausalLM._from_config(config, dtype=dtype)
        return model.requires_grad_(False).to(settings.device).train()

    def token_batch(self, settings: Settings) -> dict[str, Tensor]:
        """Random tokens and labels."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, self.vocabulary, (self.batch, self.length), generator=generator).to(settings.device)
        return {"input_ids": ids, "labels": ids}


def smollm2(batch: int, length: int) -> Workload:
    return Workload("SmolLM2-135M", batch, length, 576, 192, 1536, 9, 30, 49152, pretrained="smollm2-135m")


def smollm2_blocks(batch: int, length: int) -> Workload:
    """Twelve of its thirty layers, and a vocabulary too small to matter: the layers' own ratios, in less time."""
    return Workload("12 layers of SmolLM2's shape", batch, length, 576, 192, 1536, 9, 12, 512)


def llama_block(length: int = 512) -> Workload:
    """One block of Llama-3-8B's shape, with a vocabulary too small to matter."""
    return Workload("Llama-3-8B block", 1, length, 4096, 1024, 14336, 32, 1, 32, tied=False)


def plain_block(hidden: int, tokens: int) -> Workload:
    """One block of Llama-like proportions (kv = hidden / 4, mlp = 3.5 hidden), for curves."""
    return Workload(f"block {hidden}", 1, tokens, hidden, hidden // 4, hidden * 7 // 2, hidden // 64, 1, 32, tied=False)


class TrainingStep:
    """Forward, backward, AdamW and zero_grad of one method on one batch.

    Every method, the frozen base too, carries its backward to the model's inputs, so that what a method takes beyond
    the base is the adapter's own.
    """

    def __init__(self, method: Method, model: nn.Module, batch: dict[str, Tensor], device: torch.device) -> None:
        self.method, self.model, self.device = method, model, device
        with torch.no_grad():
            embedded = model.get_input_embeddings()(batch["input_ids"])
        self.inputs = embedded.detach().requires_grad_(True)
        self.labels = batch["labels"]
        trained = [p for p in model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None

    def loss(self) -> Tensor:
        with self.method.precision(self.device):
            return self.model(inputs_embeds=self.inputs, labels=self.labels, use_cache=False).loss

    def __call__(self) -> dict[str, float]:
        """Seconds of each phase; on a GPU the phases overlap, and only their sum is to be used."""
        started = time.perf_counter()
        loss = self.loss()
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        self.inputs.grad = None
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        done = time.perf_counter()
        return {"forward": forward - started, "backward": backward - forward, "optimizer": done - backward}
