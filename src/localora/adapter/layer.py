"""The adapter layer. One final class serves LoRA, G-LoRA, CPS-LoRA and the hybrid: they differ by placement alone.

Its adapters' parameters and labels are `layer_state.py`, their dW is `delta.py`; here it acts on activations and is
merged.

Shape legend
    W   m x n base weight (a Conv1D stores it n x m)      R   rank of the plain LoRA that equals the adapter
    x   (..., n) input                                    y   (..., m) output
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, final

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from localora.adapter.delta import LayerDelta
from localora.adapter.expert import Expert
from localora.adapter.factors import ColumnFactor, RowFactor
from localora.adapter.update import Origin, add_update, many_tokens, multiply_once, update_dtype
from localora.errors import AdapterError

BASE = "__base__"  # PEFT's name of no adapter, in a batch that names one for each sample
UNPLACED_ADDS = "which has no placement yet: its local term adds nothing. Place it with localora.calibrate first"


@final
class LocalizedLinear(LayerDelta):
    """A frozen linear layer plus adapters, y = x W^T + sum over adapters of (dropout(x) A_dense^T) (s B_dense)^T."""

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        if adapter_names is not None and not self.disable_adapters:
            return self._forward_mixed(x, adapter_names, *args, **kwargs)
        names = self.acting_beside()
        result: Tensor
        if not names:
            result = self.base_layer(x, *args, **kwargs)
            return result
        for name in names:
            if not self.localized_verified[name]:
                self._verify_for_forward(name)
        many = many_tokens(x, self.out_features, self.in_features)
        W = self._plain_frozen_weight(x) if many or torch.is_grad_enabled() else None
        if W is not None and many and not self._dropout_rate(names[0]):
            result, W = self._multiply_once(names.pop(0), x, W), None
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and W is None):
                result = self.base_layer(x, *args, **kwargs)
            if W is not None:
                result = result.detach()  # a view made without gradient could not be written to with it
            if self.quantization_backend is not None or self.base_layer._forward_hooks:
                # bitsandbytes gives views of what its own functions return; others may keep what their hooks have seen.
                result = result.clone()
        for name in names:
            result = self._add(name, result, x, W)
            W = None  # the first update carries the base layer's gradient
        return result

    def acting_beside(self) -> list[str]:
        """The adapters that a forward pass adds, after the base weight is rid of those that must not act."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        acting = self.merged_adapters if self.merged else [] if self.disable_adapters else self.active_adapters
        for name in [name for name in self.localized_folded if name not in acting]:
            self.unfold(name)
        if self.disable_adapters or self.merged:
            return []
        return [name for name in self.active_adapters if name in self.localized_layout]

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
        dtype, frozen, rate = update_dtype(x), self._frozen_beside(name), self._dropout_rate(name)
        if rate and frozen is not None:
            A, B = (factor.to(dtype) for factor in frozen)
            y, W, frozen = add_update(y, x, A, B, W_mn=W), None, None
        if rate or torch.is_grad_enabled() or torch.compiler.is_compiling():
            A, B = self.live_factors(name, dtype)
        else:
            A, B = self.factor_cache.factors((id(self), name, dtype), lambda: self.factors_beside(name, dtype))
            frozen = None
        return add_update(y, x, A, B, rate, self._origin(name, dtype), W, frozen)

    def _multiply_once(self, name: str, x: Tensor, W: Tensor) -> Tensor:
        """What the base layer and one adapter make of x, the update added to the weight."""
        bias: Any = self.get_base_layer().bias
        if not torch.is_grad_enabled():
            return multiply_once(x, *self.factors_beside(name, x.dtype), W, bias)
        A, B = self.live_factors(name, x.dtype)
        return multiply_once(x, A, B, W, bias, self._origin(name, x.dtype), self._frozen_beside(name))

    def _dropout_rate(self, name: str) -> float:
        if name not in self.localized_dropout:
            return 0.0
        dropout = self.localized_dropout[name]
        return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0

    def _plain_frozen_weight(self, x: Tensor) -> Tensor | None:
        """The base weight, where the layer is x W^T and bias alone, frozen, and unwatched: its part can be ours."""
        base = self.base_layer
        if type(base) is not nn.Linear or torch.compiler.is_compiling():
            return None
        hooks = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
        of_all = torch.nn.modules.module  # torch 2.6 has no function that says whether there are any
        hooks = hooks or of_all._global_forward_hooks or of_all._global_forward_pre_hooks
        hooks = hooks or of_all._global_backward_hooks or of_all._global_backward_pre_hooks
        trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
        if hooks or "forward" in vars(base) or trained or type(base.weight) is not nn.Parameter:
            return None
        return base.weight if base.weight.dtype == x.dtype == update_dtype(x) else None

    def _origin(self, name: str, dtype: torch.dtype) -> Origin | None:
        """How a backward pass makes the dense factors again; None where it should not."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return None  # a compiler decides itself what to save
        if dtype.itemsize <= 2:
            return None  # they and x are less than the float32 copy of x that PEFT's LoRA keeps
        factors = self.factors_of(name).values()
        # A factor that FSDP wraps by itself is whole in its own forward only.
        if any(type(f) not in (ColumnFactor, RowFactor) or f._forward_pre_hooks for f in factors):
            return None
        labels = [group[name] for group in (self.localized_row_labels, self.localized_col_labels) if name in group]
        packed = tuple(f.weight for f in factors)  # FSDP1 has views
        return Origin(packed, tuple(labels), lambda: self.live_factors(name, dtype))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _verify_for_forward(self, name: str) -> None:
        learning = self.training and torch.is_grad_enabled()
        if self.is_unplaced(name) and (self.calibrating or not learning):
            # An unplaced adapter adds its global term only; harmless until something is learned or kept.
            if not self.calibrating and self.factor_cache.again(("unplaced", id(self), name)):
                warnings.warn(f"generating with the adapter {name!r}, {UNPLACED_ADDS}", stacklevel=2)
            return
        self._verify(name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add dW of the adapters, or of the active ones, to the base weight.

        Raises UnplacedAdapterError, and with `safe_merge` AdapterError for a sum that is not finite, before it is kept.
        """
        names = check_adapters_to_merge(self, adapter_names)
        for other in [name for name in self.localized_folded if name not in (*names, *self.merged_adapters)]:
            self.unfold(other)
        for name in names:
            if name not in self.localized_layout:
                continue
            merged = self._base_plus(name, sign=1.0)
            if safe_merge and not torch.isfinite(merged).all():
                raise AdapterError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
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

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return not isinstance(self.base_layer, Expert)  # PEFT would look for a linear layer of the expert's name
