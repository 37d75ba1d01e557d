"""The adapter layer. One final class serves LoRA, G-LoRA, CPS-LoRA and the hybrid: they differ by placement alone.

Shape legend
    W   m x n base weight (a Conv1D stores it n x m)      R   rank of the plain LoRA that equals the adapter
    x   (..., n) input                                    y   (..., m) output
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from localora.adapter.factors import ColumnFactor, Factors, RowFactor, joined, product, write_whole
from localora.adapter.held import FactorHold
from localora.adapter.update import Origin, add_update, update_dtype
from localora.errors import AdapterError, LocaloraError
from localora.placement.budget import LayerBudget
from localora.placement.partition import LABEL_DTYPE, UNPLACED, Partition, Placement, PlacementError

BASE = "__base__"  # PEFT's name of no adapter, in a batch that names one for each sample


UNPLACED_ADDS = "which has no placement yet: its local term adds nothing. Place it with localora.calibrate first"


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
        localized_frozen_A/B    frozen `(c, n)` and `(m, c)`: what was learned before the last event; absent if c = 0
        localized_row_labels    int8 `(m,)`, and localized_col_labels int8 `(n,)`: where the local term acts

    Three sets of factors follow: the *live* ones that train; the ones *beside* the base weight, live and frozen, which
    a forward pass and a merge add; and the *dense* ones of all of dW, with what :meth:`fold` put into the base weight.
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
    def _init_factors(self, name: str, zero_init: bool, generator: torch.Generator | None = None) -> None:
        """Draw from the global random state, or on the CPU from `generator`, so that every process draws the same."""
        columns, rows = self.localized_global_A, self.localized_global_B
        local_columns, local_rows = self.localized_local_A, self.localized_local_B
        for factors, zero in ((columns, False), (local_columns, False), (rows, zero_init), (local_rows, zero_init)):
            if name not in factors:
                continue
            weight = factors[name].get_parameter("weight")
            if zero:
                nn.init.zeros_(weight)
            elif generator is None:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as LoRA starts its A
            else:
                fresh = torch.empty(weight.shape, device="cpu")
                write_whole(weight, nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator))

    def restart(self, name: str, seed: int) -> None:
        """The factors as at creation, in place and from a seed: dW is the frozen term then, since B is zero."""
        self._init_factors(name, zero_init=True, generator=torch.Generator().manual_seed(seed))

    def trained(self, name: str) -> dict[str, nn.Parameter]:
        """The parameters of one adapter, by their key in the state of this layer."""
        return {
            f"{group}.{name}.weight": getattr(self, group)[name].get_parameter("weight")
            for group in self.adapter_layer_names
            if name in getattr(self, group)
        }

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

    def set_frozen(self, name: str, A_cn: Tensor, B_mc: Tensor) -> None:
        """Replace the frozen term beside the base weight, B_mc @ A_cn, added to dW unscaled; rank 0 removes it."""
        for buffers, factor in ((self.localized_frozen_A, A_cn), (self.localized_frozen_B, B_mc)):
            if A_cn.shape[0]:
                buffers[name] = factor.detach().contiguous()
            elif name in buffers:
                del buffers[name]

    def frozen_factors(self, name: str) -> Factors | None:
        """The whole frozen term, `(c, n)` and `(m, c)`, wherever it is; None before the first event."""
        parts = [self.localized_folded[name]] if name in self.localized_folded else []
        if name in self.localized_frozen_A:
            parts.append((self.localized_frozen_A[name], self.localized_frozen_B[name]))
        if len(parts) < 2:
            return parts[0] if parts else None
        device = parts[0][0].device
        return torch.cat([A.to(device) for A, _ in parts]), torch.cat([B.to(device) for _, B in parts], dim=1)

    @torch.no_grad()
    def fold(self, name: str, piece: int) -> None:
        """Add the frozen term beside the base weight to that weight, and keep its factors on the CPU.

        `piece` ranks at a time, as events did it: the weight then rounds as it did in a run that never stopped.
        """
        if name not in self.localized_frozen_A:
            return
        A, B = self.localized_frozen_A[name], self.localized_frozen_B[name]
        for start in range(0, A.shape[0], piece):
            self._add_to_base(A[start : start + piece], B[:, start : start + piece])
        A, B = self.frozen_factors(name) or (A, B)
        self.localized_folded[name] = (A.cpu(), B.cpu())
        self.set_frozen(name, A[:0], B[:, :0])

    @torch.no_grad()
    def unfold(self, name: str) -> None:
        """The base weight without what :meth:`fold` added, up to the rounding of its dtype; nothing if that is none."""
        if name not in self.localized_folded:
            return
        A, B = (factor.to(self.get_base_weight().device) for factor in self.localized_folded[name])
        self._add_to_base(A, -B)
        whole = self.frozen_factors(name) or (A, B)
        del self.localized_folded[name]
        self.set_frozen(name, *(factor.to(A.device) for factor in whole))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.localized_folded:
            destination |= {f"{prefix}{key}": tensor for key, tensor in self._frozen_tensors(name).items()}

    def _frozen_tensors(self, name: str) -> dict[str, Tensor]:
        A, B = self.frozen_factors(name) or (None, None)
        return {} if A is None or B is None else {f"localized_frozen_A.{name}": A, f"localized_frozen_B.{name}": B}

    def delete_adapter(self, adapter_name: str) -> None:
        self.unfold(adapter_name)
        super().delete_adapter(adapter_name)

    def adapter_tensors(self, name: str) -> dict[str, Tensor]:
        """All that is saved of an adapter, by its key in the state of this layer."""
        labels = {
            f"{group}.{name}": getattr(self, group)[name]
            for group in ("localized_row_labels", "localized_col_labels")
            if name in getattr(self, group)
        }
        return {**self.trained(name), **labels, **self._frozen_tensors(name)}

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

    def live_factors(self, name: str, dtype: torch.dtype | None = None) -> Factors:
        """A_dense `(R, n)` and s B_dense `(m, R)` of what trains, of `dtype` if given: the only formula.

        They are without the local term while it is unplaced.
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
        if not A:
            like = self.localized_local_A[name].get_parameter("weight")
            return like.new_zeros(0, self.in_features, dtype=dtype), like.new_zeros(self.out_features, 0, dtype=dtype)
        return (A[0], B[0]) if len(A) == 1 else (torch.cat(A, dim=0), torch.cat(B, dim=1))

    def dense_factors(self, name: str, dtype: torch.dtype | None = None) -> Factors:
        """Plain LoRA factors of all of dW, A_dense `(R + c, n)` and B_dense `(m, R + c)`, of `dtype` if given."""
        return joined(self.live_factors(name, dtype), self.frozen_factors(name))

    def factors_beside(self, name: str, dtype: torch.dtype | None = None) -> Factors:
        """The same without what the base weight holds already."""
        return joined(self.live_factors(name, dtype), self._frozen_beside(name))

    def _frozen_beside(self, name: str) -> Factors | None:
        if name not in self.localized_frozen_A:
            return None
        return self.localized_frozen_A[name], self.localized_frozen_B[name]

    def get_delta_weight(self, name: str) -> Tensor:
        """dW of an adapter in the orientation of the base weight: `(m, n)`, for Conv1D `(n, m)`; float32 or wider."""
        self._verify(name)
        delta = product(*self.dense_factors(name))
        return delta.T if self.is_conv1d else delta

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        if adapter_names is not None and not self.disable_adapters:
            return self._forward_mixed(x, adapter_names, *args, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        acting = self.merged_adapters if self.merged else [] if self.disable_adapters else self.active_adapters
        for name in [name for name in self.localized_folded if name not in acting]:
            self.unfold(name)
        result: Tensor
        if self.disable_adapters or self.merged:
            result = self.base_layer(x, *args, **kwargs)
            return result
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
            result = self._add(name, result, x, W)
            W = None  # the first update carries the base layer's gradient
        return result

    def _forward_mixed(self, x: Tensor, adapter_names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """Each sample with the adapter that it names; the first dimension of x counts samples."""
        if len(x) != len(adapter_names):
            raise AdapterError(f"adapter_names has {len(adapter_names)} names for {len(x)} samples; give one for each")
        if self.merged:
            raise AdapterError("adapter_names needs adapters beside the base weight; call unmerge_adapter() first")
        for name in list(self.localized_folded):
            self.unfold(name)
        result: Tensor = self.base_layer(x, *args, **kwargs).clone()
        for name in dict.fromkeys(name for name in adapter_names if name in self.localized_layout):
            if not self.localized_verified[name]:
                self._verify_for_forward(name)
            rows = [i for i, own in enumerate(adapter_names) if own == name]
            result[rows] = self._add(name, result[rows], x[rows], None)
        return result

    def _add(self, name: str, y: Tensor, x: Tensor, W: Tensor | None) -> Tensor:
        """y plus the update of x. One pair of thin products for live and frozen factors, unless dropout parts them."""
        dtype, frozen, dropout = update_dtype(x), self._frozen_beside(name), self.localized_dropout[name]
        rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        if rate and frozen is not None:
            A, B = (factor.to(dtype) for factor in frozen)
            y, W, frozen = add_update(y, x, A, B, W_mn=W), None, None
        if rate or torch.is_grad_enabled() or torch.compiler.is_compiling():
            A, B = self.live_factors(name, dtype)
        else:
            A, B = self.hold.factors((id(self), name, dtype), lambda: self.factors_beside(name, dtype))
            frozen = None
        return add_update(y, x, A, B, rate, self._origin(name, dtype), W, frozen)

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
        return Origin(packed, tuple(labels), lambda: self.live_factors(name, dtype))

    @torch.compiler.disable
    def _verify_for_forward(self, name: str) -> None:
        learning = self.training and torch.is_grad_enabled()
        if self.is_unplaced(name) and (self.calibrating or not learning):
            # An unplaced adapter adds its global term only; harmless until something is learned or kept.
            if not self.calibrating and self.hold.again(("unplaced", id(self), name)):
                warnings.warn(f"generating with the adapter {name!r}, {UNPLACED_ADDS}", stacklevel=2)
            return
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
        names = check_adapters_to_merge(self, adapter_names)
        for other in [name for name in self.localized_folded if name not in (*names, *self.merged_adapters)]:
            self.unfold(other)
        for name in names:
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
        self._verify(name)
        A, B = self.factors_beside(name)
        return self._base_plus_product(A, sign * B)

    def _add_to_base(self, A_cn: Tensor, B_mc: Tensor) -> None:
        self.set_base_weight(self._base_plus_product(A_cn, B_mc))

    def _base_plus_product(self, A_cn: Tensor, B_mc: Tensor) -> Tensor:
        weight, delta = self.get_base_weight(), product(A_cn, B_mc)
        delta = (delta.T if self.is_conv1d else delta).to(weight.device)
        return (weight.to(delta.dtype) + delta).to(weight.dtype)

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
