"""dW of the adapters of one layer, as dense factors; and what of it the base weight holds already.

Shape legend
    m, n   outputs and inputs of the layer      R   rank of the factors that train      c   rank of the frozen term

Three sets of factors: the *live* ones that train; the ones *beside* the base weight, live and frozen, which a forward
pass and a merge add; and the *dense* ones of all of dW, with what :meth:`LayerDelta.fold` put into the base weight.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from localora.adapter.factors import Factors, joined, product
from localora.adapter.layer_state import LayerState


class LayerDelta(LayerState):
    """What the parameters and the labels of :class:`LayerState` amount to."""

    def live_factors(self, name: str, dtype: torch.dtype | None = None) -> Factors:
        """A_dense `(R, n)` and s B_dense `(m, R)` of what trains, of `dtype` if given.

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
            like = cast(Tensor, self.localized_local_A[name].weight)  # no parameter in FSDP1's forward
            return like.new_zeros(0, self.in_features, dtype=dtype), like.new_zeros(self.out_features, 0, dtype=dtype)
        return (A[0], B[0]) if len(A) == 1 else (torch.cat(A, dim=0), torch.cat(B, dim=1))

    def dense_factors(self, name: str, dtype: torch.dtype | None = None) -> Factors:
        """Plain LoRA factors of all of dW, A_dense `(R + c, n)` and B_dense `(m, R + c)`, of `dtype` if given."""
        return joined(self.live_factors(name, dtype), self.frozen_factors(name))

    def factors_beside(self, name: str, dtype: torch.dtype | None = None) -> Factors:
        """The same without what the base weight holds already."""
        return joined(self.live_factors(name, dtype), self._frozen_beside(name))

    def allocate_frozen(self, name: str, rank: int) -> None:
        """Room for a frozen term of this rank, to be loaded."""
        like = next(self.parameters())
        device = like.device if like.device.type != "meta" else "cpu"
        A_cn = torch.zeros(rank, self.in_features, device=device)
        self.set_frozen(name, A_cn, torch.zeros(self.out_features, rank, device=device))

    def frozen_factors(self, name: str) -> Factors | None:
        """The whole frozen term, `(c, n)` and `(m, c)`, wherever it is; None before the first event."""
        folded, beside = self.localized_folded.get(name), self._frozen_beside(name)
        return beside if folded is None else joined(folded, beside)

    def _frozen_beside(self, name: str) -> Factors | None:
        if name not in self.localized_frozen_A:
            return None
        return self.localized_frozen_A[name], self.localized_frozen_B[name]

    def get_delta_weight(self, name: str) -> Tensor:
        """dW of an adapter in the orientation of the base weight: `(m, n)`, for Conv1D `(n, m)`; float32 or wider."""
        self._verify(name)
        delta = product(*self.dense_factors(name))
        return delta.T if self.is_conv1d else delta

    def set_frozen(self, name: str, A_cn: Tensor, B_mc: Tensor) -> None:
        """Replace the frozen term beside the base weight, B_mc @ A_cn, added to dW unscaled; rank 0 removes it."""
        for buffers, factor in ((self.localized_frozen_A, A_cn), (self.localized_frozen_B, B_mc)):
            if A_cn.shape[0]:
                buffers[name] = factor.detach().contiguous()
            elif name in buffers:
                del buffers[name]

    @torch.inference_mode(False)  # what it makes is trained beside, whatever mode it is called in
    @torch.no_grad()
    def fold(self, name: str, piece: int) -> None:
        """Add the frozen term beside the base weight to that weight, and keep its factors on the CPU.

        `piece` ranks at a time, as events did it: the weight then rounds as it did in a run that never stopped.
        """
        if name not in self.localized_frozen_A:
            return
        A, B = self.localized_frozen_A[name], self.localized_frozen_B[name]
        for start in range(0, A.shape[0], piece):
            self.set_base_weight(self._base_plus_product(A[start : start + piece], B[:, start : start + piece]))
        A, B = self.frozen_factors(name) or (A, B)
        self.localized_folded[name] = (A.cpu(), B.cpu())
        self.set_frozen(name, A[:0], B[:, :0])
        self.factor_cache.drop()

    @torch.inference_mode(False)
    @torch.no_grad()
    def unfold(self, name: str) -> None:
        """The base weight without what :meth:`fold` added, up to the rounding of its dtype; nothing if that is none."""
        if name not in self.localized_folded:
            return
        A, B = (factor.to(self.get_base_weight().device) for factor in self.localized_folded[name])
        self.set_base_weight(self._base_plus_product(A, -B))
        whole = self.frozen_factors(name) or (A, B)
        del self.localized_folded[name]
        self.set_frozen(name, *(factor.to(A.device) for factor in whole))
        self.factor_cache.drop()

    @torch.inference_mode(False)
    def _base_plus_product(self, A_cn: Tensor, B_mc: Tensor) -> Tensor:
        weight, delta = self.get_base_weight(), product(A_cn, B_mc)
        delta = (delta.T if self.is_conv1d else delta).to(weight.device)
        return (weight.to(delta.dtype) + delta).to(weight.dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, folded in self.localized_folded.items():
            for side, factor in zip("AB", folded, strict=True):
                destination[f"{prefix}localized_folded_{side}.{name}"] = factor

    def delete_adapter(self, adapter_name: str) -> None:
        self.unfold(adapter_name)
        super().delete_adapter(adapter_name)
