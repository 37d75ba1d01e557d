"""What students learn: a linear layer's planted update, or those of all linear layers of a small transformer.

A task gives the frozen base model, batches that calibration, training and re-partition share, the planted labels, and
the error of a trained student: 0 is the teacher, 1 the untrained base.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Protocol

import torch
from benchmarks.theory.teacher import Plant, plant
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from localora import Partition
from localora.adapter.status import adapted_layers

Batch = dict[str, Tensor]


class Task(Protocol):
    """One planted teacher."""

    targets: list[str]
    clusters: int

    def base(self) -> nn.Module:
        """The frozen model that a student adapts; a fresh one each time."""

    def batches(self, seed: int) -> Iterator[Batch]:
        """Endless; the same for a seed."""

    def planted(self, layer: str) -> Partition:
        """The blocks of the layer whose name in the adapted model is `layer`."""

    def error(self, model: nn.Module) -> float:
        """Of a trained student, 0 to 1 and more."""

    def optimum(self, r: int, clusters: int) -> float | None:
        """The least error at rank r of one cluster (LoRA) or of the planted ones; None where no formula gives it."""


class Regression(nn.Module):
    """y = W x, with half the squared distance to the labels, summed over outputs, as the loss."""

    def __init__(self, W_mn: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(W_mn.shape[1], W_mn.shape[0], bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(W_mn)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.linear(x)
        return {"loss": (logits - labels).square().sum(1).mean() / 2, "logits": logits}


class LinearTask:
    """Regression on white inputs, so that the loss beyond the teacher's is ||dW - D||_F^2 / 2. No noise."""

    m, n = 128, 96
    tokens = 128  # a batch; fewer than m + n, so that one batch's gradient shows the blocks through noise
    targets = ["linear"]  # noqa: RUF012

    def __init__(self, clusters: int, overlap: float, seed: int) -> None:
        self.clusters = clusters
        self.plant: Plant = plant(self.m, self.n, clusters, overlap, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        self.W = torch.randn(self.m, self.n, generator=generator) / self.n**0.5
        self.taught = self.W + self.plant.delta.float()

    def base(self) -> nn.Module:
        return Regression(self.W)

    def batches(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed + 2)
        while True:
            x = torch.randn(self.tokens, self.n, generator=generator)
            yield {"x": x, "labels": x @ self.taught.T}

    def planted(self, layer: str) -> Partition:
        return self.plant.partition

    @torch.no_grad()
    def error(self, model: nn.Module) -> float:
        ((_, layer),) = adapted_layers(model, "default")
        return self.plant.error(layer.get_delta_weight("default"))

    def optimum(self, r: int, clusters: int) -> float | None:
        return self.plant.lora_optimum(r) if clusters == 1 else self.plant.cluster_optimum(r)


class Distillation(nn.Module):
    """A language model with the distance of its logits to given ones as the loss, 1 for the untrained base."""

    def __init__(self, llama: LlamaForCausalLM, unit: float) -> None:
        super().__init__()
        self.llama, self.unit = llama, unit

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.llama(input_ids=input_ids).logits
        return {"loss": (logits - labels).square().mean() / self.unit, "logits": logits}


class TransformerTask:
    """Every linear layer of two Llama blocks has its own planted update; the student sees the teacher's logits."""

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # noqa: RUF012
    vocabulary, examples, length = 64, 16, 12
    strength = 0.5  # ||D||_F / ||W||_F

    def __init__(self, clusters: int, overlap: float, seed: int) -> None:
        self.clusters = clusters
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=False,
            initializer_range=0.2,
        )
        self.llama = LlamaForCausalLM(config).eval()
        self.teacher = copy.deepcopy(self.llama)
        self.plants: dict[str, Plant] = {}
        with torch.no_grad():
            for number, (name, layer) in enumerate(self.teacher.named_modules()):
                if isinstance(layer, nn.Linear) and name.rsplit(".", 1)[-1] in self.targets:
                    W = layer.weight
                    planted = plant(*W.shape, clusters, overlap, 1000 * seed + number)
                    W += planted.delta.float() * W.norm() * self.strength
                    self.plants[name] = planted
        held_out = self.batches(-3)  # training draws from seeds of 0 and more
        self.held_out = [next(held_out) for _ in range(8)]
        with torch.no_grad():
            self.unit = float(
                torch.stack(
                    [(self.llama(b["input_ids"]).logits - b["labels"]).square().mean() for b in self.held_out]
                ).mean()
            )

    def base(self) -> nn.Module:
        return Distillation(copy.deepcopy(self.llama), self.unit)

    def batches(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed + 3)
        while True:
            tokens = torch.randint(self.vocabulary, (self.examples, self.length), generator=generator)
            with torch.no_grad():
                logits = self.teacher(input_ids=tokens).logits
            yield {"input_ids": tokens, "labels": logits}

    def planted(self, layer: str) -> Partition:
        return next(planted.partition for name, planted in self.plants.items() if layer.endswith(name))

    @torch.no_grad()
    def error(self, model: nn.Module) -> float:
        model.eval()
        return sum(float(model(**batch)["loss"]) for batch in self.held_out) / len(self.held_out)

    def optimum(self, r: int, clusters: int) -> float | None:
        return None


TASKS: dict[str, type[LinearTask] | type[TransformerTask]] = {"linear": LinearTask, "transformer": TransformerTask}
