"""What the adapters of one layer consist of: their parameters, their labels, and where these place them.

Shape legend
    m, n    outputs and inputs of the layer      r_g, r_l   rank of the global and of the local term
    m', n'  covered rows and columns             c          rank of the frozen term
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from peft.utils import resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D

from localora.adapter.factor_cache import FactorCache
from localora.adapter.factors import ColumnFactor, Factors, RowFactor, write_whole
from localora.adapter.zero import whole_shape
from localora.errors import LocaloraError
from localora.placement.budget import LayerBudget
from localora.placement.partition import LABEL_DTYPE, UNPLACED, Partition, Placement, PlacementError


class UnplacedAdapterError(LocaloraError, RuntimeError):
    """An adapter was trained, merged or exported before any planner had placed it."""


class Layout(NamedTuple):
    """What is fixed of one adapter on one layer: its shapes and its scale s."""

    budget: LayerBudget
    scale: float


class LayerState(nn.Module, BaseTunerLayer):
    """A frozen linear layer and what its adapters hold.

    Parameters and buffers of every adapter, each under the adapter's name:
        localized_global_A/B    factors of the term over the whole matrix, `(r_g, n)` and `(m, r_g)`; absent if r_g = 0
        localized_local_A/B     factors of the block or the clusters, `(r_l, n')` and `(m', r_l)`; absent without one
        localized_frozen_A/B    frozen `(c, n)` and `(m, c)`: what was learned before the last event; absent if c = 0
        localized_row_labels    int8 `(m,)`, and localized_col_labels int8 `(n,)`: where the local term acts
    """

    adapter_layer_names = ("localized_global_A", "localized_global_B", "localized_local_A", "localized_local_B")
    other_param_names = (
        "localized_row_labels",
        "localized_col_labels",
        "localized_frozen_A",
        "localized_frozen_B",
        "localized_folded",
        "localized_dropout",
        "localized_layout",
        "localized_verified",
    )

    def __init__(self, base_layer: nn.Module, **quantization: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer(), **quantization)
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        assert in_features is not None  # the model admits linear layers only
        assert out_features is not None
        self.in_features: int = in_features
        self.out_features: int = out_features
        self.is_conv1d = isinstance(self.get_base_layer(), Conv1D)
        self.localized_global_A = nn.ModuleDict()
        self.localized_global_B = nn.ModuleDict()
        self.localized_local_A = nn.ModuleDict()
        self.localized_local_B = nn.ModuleDict()
        self.localized_row_labels = BufferDict(persistent=True)
        self.localized_col_labels = BufferDict(persistent=True)
        self.localized_frozen_A = BufferDict(persistent=True)
        self.localized_frozen_B = BufferDict(persistent=True)
        self.localized_folded: dict[str, Factors] = {}  # on the CPU: frozen factors that the base weight holds
        self.localized_dropout = nn.ModuleDict()
        self.localized_layout: dict[str, Layout] = {}
        # Labels are checked once per adapter, at its first use: reading them costs a device synchronisation.
        self.localized_verified: dict[str, bool] = {}
        self.calibrating = False  # the gradient is being observed, so an unplaced adapter is no mistake
        self.factor_cache = FactorCache()  # the model's own, once the layer is part of one
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True

    def add_adapter(
        self, name: str, budget: LayerBudget, *, scale: float, dropout: float, zero_init: bool, inference_mode: bool
    ) -> None:
        """Create the factors and the still unplaced labels of one adapter. Shapes: see the class."""
        m, n = self.out_features, self.in_features
        if budget.global_rank:
            self.localized_global_A[name] = ColumnFactor(budget.global_rank, n)
            self.localized_global_B[name] = RowFactor(m, budget.global_rank)
        if budget.local:
            self.localized_local_A[name] = ColumnFactor(budget.local.rank, budget.local.cols)
            self.localized_local_B[name] = RowFactor(budget.local.rows, budget.local.rank)
            self.localized_row_labels[name] = torch.full((m,), UNPLACED, dtype=LABEL_DTYPE)
            self.localized_col_labels[name] = torch.full((n,), UNPLACED, dtype=LABEL_DTYPE)
        if dropout:
            self.localized_dropout[name] = nn.Dropout(dropout)  # a module, where trainers look for what to switch off
        self.localized_layout[name] = Layout(budget, scale)
        self.localized_verified[name] = budget.local is None
        self._init_factors(name, zero_init)
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)
        for labels in (self.localized_row_labels, self.localized_col_labels):
            if adapter_name in labels:
                labels[adapter_name] = labels[adapter_name].to(LABEL_DTYPE)  # PEFT 0.20 makes them floats, exactly

    @torch.no_grad()
    def _init_factors(self, name: str, zero_init: bool, generator: torch.Generator | None = None) -> None:
        """Draw from the global random state, or on the CPU from `generator`, so that every process draws the same."""
        for group, factor in self.factors_of(name).items():
            weight, zero = factor.get_parameter("weight"), zero_init and group.endswith("_B")
            if generator is None:
                nn.init.zeros_(weight) if zero else nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as LoRA starts
                continue
            fresh = torch.zeros(whole_shape(weight), device="cpu")
            if not zero:
                nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
            write_whole(weight, fresh)

    def restart(self, name: str, seed: int) -> None:
        """The factors as at creation, in place and from a seed: dW is the frozen term then, since B is zero."""
        self._init_factors(name, zero_init=True, generator=torch.Generator().manual_seed(seed))

    def factors_of(self, name: str) -> dict[str, Any]:
        """The packed factors of one adapter, by the groups that the class names."""
        groups = {group: getattr(self, group) for group in self.adapter_layer_names}
        return {group: factors[name] for group, factors in groups.items() if name in factors}

    def trained(self, name: str) -> dict[str, nn.Parameter]:
        """The parameters of one adapter, by their key in the state of this layer; under FSDP1 perhaps none any more."""
        return {f"{group}.{name}.weight": factor.weight for group, factor in self.factors_of(name).items()}

    def place(self, name: str, partition: Partition) -> None:
        """Write the labels of the local term, in place: no parameter changes its shape or identity.

        Raises PlacementError if the partition does not fit the adapter's fixed shapes.
        """
        check_fits(partition, self.localized_layout[name].budget, name)
        with torch.no_grad():
            self.localized_row_labels[name].copy_(partition.row_labels)
            self.localized_col_labels[name].copy_(partition.col_labels)
        self.localized_verified[name] = True

    def local_partition(self, name: str) -> Partition | None:
        """The partition of the local term as its labels say now; None without a local term.

        Raises:
            UnplacedAdapterError: the adapter was never placed.
            PlacementError: the labels are damaged.
        """
        budget = self.localized_layout[name].budget
        if budget.local is None:
            return None
        row_labels, col_labels = self.localized_row_labels[name], self.localized_col_labels[name]
        if self.is_unplaced(name):
            raise UnplacedAdapterError(
                f"the adapter {name!r} has no placement yet, so it would train nothing. Place it first: call "
                "localora.calibrate(model, batches), or give the Trainer a localora.LocalizationCallback(), or set "
                "placement='random' in a new config (one read from a folder waits for the labels in that folder)"
            )
        partition = Partition.from_labels(row_labels, col_labels, budget.local.clusters)
        check_fits(partition, budget, name)
        return partition

    def is_unplaced(self, name: str) -> bool:
        """Whether the adapter waits for a planner."""
        return name in self.localized_row_labels and bool((self.localized_row_labels[name] == UNPLACED).any())

    def placement(self, name: str) -> Placement:
        """The whole stack of partitions of an adapter. Raises as :meth:`local_partition`."""
        partitions = []
        if self.localized_layout[name].budget.global_rank:
            partitions.append(Partition.whole(self.out_features, self.in_features))
        local = self.local_partition(name)
        if local is not None:
            partitions.append(local)
        return Placement(tuple(partitions))

    def _verify(self, name: str) -> None:
        self.local_partition(name)
        self.localized_verified[name] = True

    def extra_repr(self) -> str:
        return f"adapters={sorted(self.localized_layout)}"

    def __repr__(self) -> str:
        return "localized." + super().__repr__()


def check_fits(partition: Partition, budget: LayerBudget, name: str) -> None:
    """Raise PlacementError unless the partition fits the fixed shapes of the adapter called `name`."""
    local = budget.local
    if local is None:
        raise PlacementError(f"the adapter {name!r} has no local term on this layer, so nothing to place")
    asked = (budget.m, budget.n, local.clusters, local.rows, local.cols)
    given = (partition.m, partition.n, partition.clusters, partition.covered_rows, partition.covered_cols)
    if asked != given:
        what = ("rows", "columns", "clusters", "covered rows", "covered columns")
        wrong = [f"{w} {g} instead of {a}" for w, g, a in zip(what, given, asked, strict=True) if g != a]
        raise PlacementError(f"the labels do not fit the adapter {name!r}: {', '.join(wrong)}")
