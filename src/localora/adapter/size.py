"""How large an adapter is, in the three numbers that a comparison needs side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from localora.adapter.adapted import adapted_layers
from localora.adapter.config import LocalizedConfig
from localora.placement.budget import LayerBudget


@dataclass(frozen=True)
class AdapterSize:
    """Of all layers together.

    Attributes:
        trainable: parameters with a gradient, those of LoRA at the equivalent rank.
        stored: parameters that a forward pass uses and the adapter file holds: the frozen term's too; without labels.
        rank: the largest rank of any layer's update, which is that of the exact export before padding.
    """

    trainable: int
    stored: int
    rank: int


def size_of_budgets(budgets: Iterable[LayerBudget], consolidated_rank: int = 0) -> AdapterSize:
    """From shapes alone, with a frozen term of the given rank."""
    budgets = list(budgets)
    trainable = sum(budget.parameters for budget in budgets)
    frozen = sum(consolidated_rank * (budget.m + budget.n) for budget in budgets)
    rank = max((budget.dense_rank for budget in budgets), default=0)
    return AdapterSize(trainable, trainable + frozen, rank + consolidated_rank)


def frozen_rank_after(budgets: Iterable[LayerBudget], config: LocalizedConfig, events: int) -> int:
    """Rank of the frozen term after so many events more: each adds the largest rank of a layer's live update."""
    rank = config.consolidated_rank + events * max((budget.dense_rank for budget in budgets), default=0)
    return min(rank, config.frozen_rank or rank)


def adapter_size(model: nn.Module, adapter_name: str = "default") -> AdapterSize:
    """Of an adapter as it is now, without `modules_to_save`."""
    layers = [layer for _, layer in adapted_layers(model, adapter_name)]
    frozen = [factors for layer in layers if (factors := layer.frozen_factors(adapter_name)) is not None]
    rank = max((len(A) for A, _ in frozen), default=0)
    return size_of_budgets((layer.localized_layout[adapter_name].budget for layer in layers), rank)
