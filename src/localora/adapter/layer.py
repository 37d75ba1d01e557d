"""The adapter layer. One final class serves LoRA, G-LoRA, CPS-LoRA and the hybrid: they differ by placement alone.

Shape legend
    W   m x n base weight (a Conv1D stores it n x m)      R   rank of the plain LoRA that equals the adapter
    x   (..., n) input                                    y   (..., m) output
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple, final

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from localora.adapter.factors import ColumnFactor, RowFactor
from localora.adapter.held import FactorHold
from localora.adapter.update import Origin, add_update, update_dtype
from localora.errors import AdapterError, LocaloraError
from localora.placement.budget import LayerBudget
from localora.placement.partition import LABEL_DTYPE, UNPLACED, Partition, Placement, PlacementError


class UnplacedAdapterError(LocaloraError, RuntimeError):
    """An adapter was trained, merged or exported before any planner had placed it."""


class Layout(NamedTuple):
    """What is fixed of one adapter on one layer: its shapes and its scale s."""

    budget: LayerBudget
    scale: float


@final
class LocalizedLinear(nn.Module, BaseTunerLayer):
    """A frozen linear layer plus adapters, y = x W^T + sum over adapters of (dropout(x) A_dense^T) (s B_dense)^T.

    Parameters and buffers of every adapter, each under the adapter's name:
        localized_global_A/B    factors of the term over the whole matrix, `(r_g, n)` and `(m, r_g)`; absent if r_g = 0
        localized_local_A/B     factors of the block or the clusters, `(r_l, n')` and `(m', r_l)`; absent without one
        localized_carry_A/B     frozen `(c, n)` and `(m, c)`: what earlier partitions left behind; absent if c = 0
        localized_row_labels    int8 `(m,)`, and localized_col_labels int8 `(n,)`: where the local term acts
    """

    adapter_layer_names = (
        "localized_global_A",
        "localized_global_B",
        "localized_local_A",
        "localized_local_B",
    )
    other_param_names = (
        "localized_row_labels",
        "localized_col_labels",
        "localized_carry_A",
        "localized_carry_B",
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
        self.localized_carry_A = BufferDict(persistent=True)
        self.localized_carry_B = BufferDict(persistent=True)
        self.localized_dropout = nn.ModuleDict()
        self.localized_layout: dict[str, Layout] = {}
        # Labels are checked once per adapter, at its first use: reading them costs a device synchronisation.
        self.localized_verified: dict[str, bool] = {}
        self.calibrating = False  # the gradient is being observed, so an unplaced adapter is no mistake
        self.hold = FactorHold()  # the model's own, once the layer is part of one
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True

    def add_adapter(
        self,
        name: str,
        budget: LayerBudget,
        *,
        scale: float,
        dropout: float,
        zero_init: bool,
        inference_mode: bool,
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
        self.localized_dropout[name] = nn.Dropout(dropout) if dropout else nn.Identity()
        self.localized_layout[name] = Layout(budget, scale)
        self.localized_verified[name] = budget.local is None
        self._init_factors(name, zero_init)
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @torch.no_grad()
    def _init_factors(self, name: str, zero_init: bool) -> None:
        for factors in (self.localized_global_A, self.localized_local_A):
            if name in factors:
                nn.init.kaiming_uniform_(factors[name].get_parameter("weight"), a=math.sqrt(5))  # as LoRA starts its A
        for factors in (self.localized_global_B, self.localized_local_B):
            if name in factors:
                weight = factors[name].get_parameter("weight")
                nn.init.zeros_(weight) if zero_init else nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def place(self, name: str, partition: Partition) -> None:
        """Write the labels of the local term, in place: no parameter changes its shape or identity.

        Raises:
            PlacementError: the partition does not fit the adapter's fixed shapes.
        """
        check_fits(partition, self.localized_layout[name].budget, name)
        with torch.no_grad():
            self.localized_row_labels[name].copy_(partition.row_labels)
            self.localized_col_labels[name].copy_(partition.col_labels)
        self.localized_verified[name] = True

    def set_carry(self, name: str, A_cn: Tensor, B_mc: Tensor) -> None:
        """Replace the frozen term B_mc @ A_cn, which is added to dW unscaled; rank 0 removes it."""
        for buffers, factor in ((self.localized_carry_A, A_cn), (self.localized_carry_B, B_mc)):
            if A_cn.shape[0]:
                buffers[name] = factor.detach().contiguous()
            elif name in buffers:
                del buffers[name]

    def adapter_tensors(self, name: str) -> dict[str, Tensor]:
        """All that is saved of an adapter, by its key in the state of this layer."""
        tensors = {
            f"{group}.{name}.weight": getattr(self, group)[name].weight
            for group in self.adapter_layer_names
            if name in getattr(self, group)
        }
        buffers = ("localized_row_labels", "localized_col_labels", "localized_carry_A", "localized_carry_B")
        return tensors | {
            f"{group}.{name}": getattr(self, group)[name] for group in buffers if name in getattr(self, group)
        }

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
                "placement='random' in the config"
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

    def dense_factors(self, name: str, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Plain LoRA factors A_dense `(R, n)` and s B_dense `(m, R)`; their product is dW. The only formula.

        They are of `dtype` if given, and without the local term while it is unplaced.
        """
        budget, scale = self.localized_layout[name]
        A, B = [], []
        if budget.global_rank:
            A.append(self.localized_global_A[name](None, 1, dtype))
            B.append(self.localized_global_B[name](None, 1, scale, dtype))
        if budget.local and (self.localized_verified[name] or not self.is_unplaced(name)):
            clusters = budget.local.clusters
            A.append(self.localized_local_A[name](self.localized_col_labels[name], clusters, dtype))
            B.append(self.localized_local_B[name](self.localized_row_labels[name], clusters, scale, dtype))
        if name in self.localized_carry_A:
            A.append(self.localized_carry_A[name].to(dtype))
            B.append(self.localized_carry_B[name].to(dtype))
        if not A:
            like = self.localized_local_A[name].get_parameter("weight")
            return like.new_zeros(0, self.in_features, dtype=dtype), like.new_zeros(self.out_features, 0, dtype=dtype)
        return (A[0], B[0]) if len(A) == 1 else (torch.cat(A, dim=0), torch.cat(B, dim=1))

    def get_delta_weight(self, name: str) -> Tensor:
        """dW of an adapter in the orientation of the base weight: `(m, n)`, for Conv1D `(n, m)`; float32 or wider."""
        self._verify(name)
        A, B = self.dense_factors(name)
        wide = torch.promote_types(A.dtype, torch.float32)
        delta = B.to(wide) @ A.to(wide)
        return delta.T if self.is_conv1d else delta

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        names = [name for name in self.active_adapters if name in self.localized_layout]
        W = self._plain_frozen_weight(x) if names else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and W is None):
            result = self.base_layer(x, *args, **kwargs)
        if W is not None:
            result = result.detach()  # a view made without gradient could not be written to with it
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for name in names:
            if not self.localized_verified[name]:
                self._verify_for_forward(name)
            dtype = update_dtype(x)
            A, B = self._factors_for_forward(name, dtype)
            dropout = self.localized_dropout[name]
            rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
            result = add_update(result, x, A, B, rate, self._origin(name, dtype), W)
            W = None  # the first update carries the base layer's gradient
        return result

    def _plain_frozen_weight(self, x: Tensor) -> Tensor | None:
        """The base weight, if g W is all of the base layer's backward and nobody watches: the update can add that."""
        base = self.base_layer
        if type(base) is not nn.Linear or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return None
        hooks = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
        hooks = hooks or torch.nn.modules.module._has_any_global_hook()
        trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
        if hooks or "forward" in vars(base) or trained or type(base.weight) is not nn.Parameter:
            return None
        return base.weight if base.weight.dtype == x.dtype == update_dtype(x) else None

    def _factors_for_forward(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.dense_factors(name, dtype)
        return self.hold.factors((id(self), name, dtype), lambda: self.dense_factors(name, dtype))

    def _origin(self, name: str, dtype: torch.dtype) -> Origin | None:
        """How a backward pass makes the dense factors again; None where it should not."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return None  # a compiler decides itself what to save
        factors = [
            group[name]
            for group in (
                self.localized_global_A,
                self.localized_global_B,
                self.localized_local_A,
                self.localized_local_B,
            )
            if name in group
        ]
        # A factor that FSDP wraps by itself is whole in its own forward only.
        if any(type(f) not in (ColumnFactor, RowFactor) or f._forward_pre_hooks for f in factors):
            return None
        labels = [group[name] for group in (self.localized_row_labels, self.localized_col_labels) if name in group]
        packed = tuple(factor.get_parameter("weight") for factor in factors)
        return Origin(packed, tuple(labels), lambda: self.dense_factors(name, dtype))

    @torch.compiler.disable
    def _verify_for_forward(self, name: str) -> None:
        learning = self.training and torch.is_grad_enabled()
        if self.is_unplaced(name) and (self.calibrating or not learning):
            return  # an unplaced adapter adds its global term only; harmless until something is learned or kept
        self._verify(name)

    def _verify(self, name: str) -> None:
        self.local_partition(name)
        self.localized_verified[name] = True

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add dW of the adapters to the base weight.

        Args:
            safe_merge: check the merged weight for NaN and infinity before it replaces the base weight.
            adapter_names: the adapters to merge; None means the active ones.

        Raises:
            UnplacedAdapterError: an adapter was never placed.
            ValueError: `safe_merge` found a weight that is not finite; the base weight is untouched.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.localized_layout:
                continue
            merged = self._base_plus(name, sign=1.0)
            if safe_merge and not torch.isfinite(merged).all():
                raise AdapterError(f"NaN or infinity in the merged weights: the adapter {name!r} seems to be broken")
            self.set_base_weight(merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract every merged adapter's dW again; exact up to the rounding of the base weight's dtype."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            self.set_base_weight(self._base_plus(self.merged_adapters.pop(), sign=-1.0))

    @torch.no_grad()
    def _base_plus(self, name: str, sign: float) -> Tensor:
        weight = self.get_base_weight()
        delta = self.get_delta_weight(name).to(weight.device)
        return (weight.to(delta.dtype) + sign * delta).to(weight.dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

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
