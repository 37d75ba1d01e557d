"""The methods compared, all at the parameters of LoRA of one rank, and how each is put on a shared frozen base."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from peft import GraloraConfig, LoraConfig, PeftConfig, get_peft_model
from torch import nn

from localora import CpsLoraConfig, GLoraConfig

ConfigMaker = Callable[[int, float, str], PeftConfig]  # rank, dropout, placement -> config


@dataclass(frozen=True)
class Method:
    """One column of every table.

    Attributes:
        config: None for the frozen base.
        half_adapter: the adapter's weights take the base's half precision, instead of PEFT's default float32.
        autocast: steps run under torch.autocast(bfloat16). Both only mean something on a half-precision base.
    """

    key: str
    label: str
    config: ConfigMaker | None
    half_adapter: bool = False
    autocast: bool = False

    @property
    def half_only(self) -> bool:
        return self.half_adapter or self.autocast

    def wrap(
        self, base: nn.Module, r: int, dropout: float = 0.0, placement: str = "random", *, share: bool = True
    ) -> nn.Module:
        """The base with this adapter; `share` leaves `base` as it is and uses its weights without a copy of them."""
        model = with_shared_weights(base) if share else base
        if self.config is None:
            return model
        config = self.config(r, dropout, placement)
        return get_peft_model(model, config, autocast_adapter_dtype=not self.half_adapter)

    def precision(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16) if self.autocast else nullcontext()


def _lora(**options: object) -> ConfigMaker:
    return lambda r, dropout, _: LoraConfig(
        r=r, lora_alpha=2 * r, lora_dropout=dropout, target_modules="all-linear", **options
    )


def _gralora(r: int, dropout: float, _: str) -> PeftConfig:
    return GraloraConfig(r=r, alpha=2 * r, gralora_dropout=dropout, gralora_k=2, target_modules="all-linear")


def _ours(kind: type, **options: object) -> ConfigMaker:
    return lambda r, dropout, placement: kind(
        r=r, alpha=2.0 * r, dropout=dropout, target_modules="all-linear", placement=placement, **options
    )


def _g_lora(r: int, dropout: float, placement: str) -> PeftConfig:
    """Its block is a quarter of the rows and columns, or more where the narrowest matrix could not hold its rank."""
    size = next(size for size in (0.25, 0.5, 0.75, 1.0) if size * size * NARROWEST >= r / 2 or size == 1)
    return _ours(GLoraConfig, local_size=size)(r, dropout, placement)


NARROWEST = 192  # outputs of SmolLM2's k and v: the smallest matrix of all workloads
FLOOR = Method("floor", "frozen base", None)
PEFT_LORA = Method("peft-lora", "PEFT LoRA", _lora())
METHODS = (
    FLOOR,
    PEFT_LORA,
    Method("peft-lora-half", "PEFT LoRA, bf16 adapter", _lora(), half_adapter=True),
    Method("peft-lora-autocast", "PEFT LoRA, autocast", _lora(), autocast=True),
    Method("peft-dora", "PEFT DoRA", _lora(use_dora=True)),
    Method("peft-gralora", "PEFT GraLoRA", _gralora),
    Method("lora", "LoRA as placement", _ours(GLoraConfig, global_share=1.0)),
    Method("g-lora", "G-LoRA", _g_lora),
    Method("cps-lora-2", "CPS-LoRA, K = 2", _ours(CpsLoraConfig, clusters=2)),
    Method("cps-lora-4", "CPS-LoRA, K = 4", _ours(CpsLoraConfig, clusters=4)),
    Method("cps-lora-8", "CPS-LoRA, K = 8", _ours(CpsLoraConfig, clusters=8)),
    Method("hybrid", "hybrid, K = 4", _ours(CpsLoraConfig, clusters=4, global_share=0.5)),
)
BY_KEY = {method.key: method for method in METHODS}
COMPARATORS = ("peft-lora", "peft-lora-half", "peft-lora-autocast")
OURS = ("lora", "g-lora", "cps-lora-2", "cps-lora-4", "cps-lora-8", "hybrid")
PLACED = ("g-lora", "cps-lora-4", "hybrid")  # those that calibrate


def for_dtype(dtype: torch.dtype) -> list[Method]:
    """The methods that mean something on a base of this type."""
    return [method for method in METHODS if dtype != torch.float32 or not method.half_only]


def cps_with(clusters: int) -> Method:
    """CPS-LoRA with another number of clusters."""
    return Method(f"cps-lora-{clusters}", f"CPS-LoRA, K = {clusters}", _ours(CpsLoraConfig, clusters=clusters))


def with_shared_weights(base: nn.Module) -> nn.Module:
    """A second module tree over the same parameter and buffer tensors."""
    return copy.deepcopy(base, {id(tensor): tensor for tensor in chain(base.parameters(), base.buffers())})
