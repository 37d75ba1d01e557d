"""The layers of a saved adapter, from its tensors: all there, of the shapes that its config needs, and nothing else.

No tensor is taken that is not expected, since PEFT would load it over the base model's.

Shape legend
    m, n   rows and columns of a layer's W       R   rank of its dense factors       c   rank of its frozen term
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from localora.adapter.config import LocalizedConfig
from localora.adapter.factors import places_of, scatter
from localora.adapter.layer_state import check_fits
from localora.errors import listed
from localora.placement.budget import LayerBudget
from localora.placement.partition import LABEL_DTYPE, UNPLACED, Partition, PlacementError

PEFT_PREFIX = "base_model.model."
OURS = ".localized_"  # in the key of every tensor of an adapter, between the layer's name and the tensor's


class AdapterFileError(PlacementError):
    """An adapter's file that is damaged, or belongs to another config or model; the message names file or key."""


@dataclass(frozen=True)
class SavedLayer:
    """One layer's tensors, all there and of the right shapes and dtypes, by their names behind `localized_`."""

    name: str  # in the base model
    budget: LayerBudget
    scale: float
    tensors: Mapping[str, Tensor]

    @property
    def is_unplaced(self) -> bool:
        sides = () if self.budget.local is None else ("row_labels", "col_labels")
        return bool(sides) and all(bool((self.tensors[side] == UNPLACED).all()) for side in sides)

    def partition(self) -> Partition | None:
        """Where its local term acts; None without one. AdapterFileError for labels that do not fit its shapes."""
        local = self.budget.local
        if local is None:
            return None
        rows, cols = self.tensors["row_labels"], self.tensors["col_labels"]
        try:
            partition = Partition.from_labels(rows, cols, local.clusters)
            check_fits(partition, self.budget, self.name)
        except PlacementError as error:
            raise AdapterFileError(f"the adapter file is damaged at layer {self.name}: {error}") from error
        return partition

    def check_finite(self) -> None:
        """Raise AdapterFileError if a tensor is not finite, or if factors that are have a product that need not be.

        No entry of s B A exceeds the sum over its ranks of the largest entries of B's column and A's row.
        """
        check_finite({f"{self.name}{OURS}{key}": tensor for key, tensor in self.tensors.items()})
        for term, scale in (("global", self.scale), ("local", self.scale), ("frozen", 1.0)):
            suffix = "" if term == "frozen" else ".weight"
            A, B = (self.tensors.get(f"{term}_{side}{suffix}") for side in "AB")
            if A is None or B is None or A.is_meta or B.is_meta:
                continue
            largest = A.detach().double().abs().amax(dim=1) * B.detach().double().abs().amax(dim=0)
            if abs(scale) * largest.sum().item() > torch.finfo(torch.float32).max:
                raise AdapterFileError(
                    f"the {term} factors of {self.name} in the adapter file are so large that their product is not "
                    "finite: training had diverged when it was saved. Load an earlier checkpoint"
                )

    def dense_factors(self) -> tuple[Tensor, Tensor]:
        """A `(R, n)` and s B `(m, R)` of all of dW, the frozen term's last. Raises as :meth:`partition`."""
        A, B = [], []
        if self.budget.global_rank:
            A.append(self.tensors["global_A.weight"])
            B.append(self.tensors["global_B.weight"] * self.scale)
        partition, local = self.partition(), self.budget.local
        if partition is not None and local is not None:
            places_n = places_of(partition.col_labels, local.cols, local.clusters)
            places_m = places_of(partition.row_labels, local.rows, local.clusters)
            A.append(scatter(self.tensors["local_A.weight"].T, places_n, self.budget.n, local.clusters).T)
            B.append(scatter(self.tensors["local_B.weight"] * self.scale, places_m, self.budget.m, local.clusters))
        if "frozen_A" in self.tensors:
            A.append(self.tensors["frozen_A"].to(A[0]))
            B.append(self.tensors["frozen_B"].to(B[0]))
        return torch.cat(A, dim=0), torch.cat(B, dim=1)


def layers_of(
    config: LocalizedConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, SavedLayer], dict[str, Tensor]]:
    """The layers of an adapter by their names, and its other tensors; on the meta device only shapes are looked at.

    Raises:
        AdapterFileError: a tensor that is missing, not expected, or of another shape or dtype than the config needs.
    """
    by_layer, others = split(tensors)
    check_others(others, config)
    if not by_layer:
        raise AdapterFileError("the adapter file holds no adapted layer")
    layers = {}
    for name, own in by_layer.items():
        m, n = _sides(name, own)
        budget = config.layer_budget(m, n, config.layer_rank(name))
        check_layer(name, budget, config.consolidated_rank, own, "its config needs {}; was one of them edited?")
        layers[name] = SavedLayer(name, budget, config.layer_scale(name), own)
    return layers, others


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Tensors by layer name and own name, and those that are no adapter's."""
    by_layer: dict[str, dict[str, Tensor]] = {}
    others = {}
    for key, tensor in tensors.items():
        name, found, own = key.partition(OURS)
        if found:
            by_layer.setdefault(name.removeprefix(PEFT_PREFIX), {})[own] = tensor
        else:
            others[key] = tensor
    return by_layer, others


def check_others(others: Iterable[str], config: LocalizedConfig) -> None:
    """Refuse what is neither an adapter's nor of a module in `modules_to_save`: PEFT would load it over the base's."""
    modules, others = config.modules_to_save or [], list(others)
    # Some of the names may be no module's: PEFT adds both `classifier` and `score` for a model that classifies. Which
    # ones a model has is looked at with the model.
    if modules and not others:
        raise AdapterFileError(
            f"the adapter file has no tensor of {', '.join(map(repr, modules))}, which its config's modules_to_save "
            "names; save the adapter again with save_pretrained"
        )
    strangers = [key for key in others if not _saved_in_full(key, modules)]
    if strangers:
        raise AdapterFileError(
            f"the adapter file holds {listed(strangers, 3)}, which belongs to no adapted layer and to none of "
            f"modules_to_save={config.modules_to_save}: loading it would overwrite the base model. If the weights are "
            "meant, name their module in modules_to_save; embeddings are left out by save_embedding_layers=False"
        )


def _saved_in_full(key: str, modules: Iterable[str]) -> bool:
    parts = key.removeprefix(PEFT_PREFIX).split(".")
    if {"base_layer", "original_module"} & set(parts):
        return False
    owners = [".".join(parts[:i]) for i in range(1, len(parts))]
    return any(owner == module or owner.endswith(f".{module}") for module in modules for owner in owners)


def _sides(name: str, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """m and n of a layer, from whatever says them."""
    for rows, cols, ndim in (("row_labels", "col_labels", 1), ("global_B.weight", "global_A.weight", 2)):
        if rows in tensors and cols in tensors:
            for key in (rows, cols):
                if tensors[key].ndim != ndim:
                    raise AdapterFileError(
                        f"{name}{OURS}{key} has shape {tuple(tensors[key].shape)} in the adapter file; it must have "
                        f"{ndim} dimension{'s' * (ndim > 1)}"
                    )
            return tensors[rows].shape[0], tensors[cols].shape[-1]
    has_local = any(key.startswith("local_") or key.endswith("_labels") for key in tensors)
    pair = ("row_labels", "col_labels") if has_local else ("global_A.weight", "global_B.weight")
    raise _lacks(name, [key for key in pair if key not in tensors])


def expected_shapes(budget: LayerBudget, frozen_rank: int) -> dict[str, tuple[int, ...]]:
    """The tensors that are saved of one layer, by their names behind `localized_`."""
    m, n, r_g, local, c = budget.m, budget.n, budget.global_rank, budget.local, frozen_rank
    shapes: dict[str, tuple[int, ...]] = {}
    if r_g:
        shapes |= {"global_A.weight": (r_g, n), "global_B.weight": (m, r_g)}
    if local is not None:
        shapes |= {"local_A.weight": (local.rank, local.cols), "local_B.weight": (local.rows, local.rank)}
        shapes |= {"row_labels": (m,), "col_labels": (n,)}
    if c:
        shapes |= {"frozen_A": (c, n), "frozen_B": (m, c)}
    return shapes


def check_layer(name: str, budget: LayerBudget, frozen_rank: int, tensors: Mapping[str, Tensor], needed: str) -> None:
    """Raise AdapterFileError unless the tensors are exactly those of this budget; `needed` says whose shapes hold."""
    shapes = expected_shapes(budget, frozen_rank)
    missing = [key for key in shapes if key not in tensors]
    if missing:
        raise _lacks(name, missing)
    for key, tensor in tensors.items():
        full = f"{name}{OURS}{key}"
        if key not in shapes:
            raise AdapterFileError(f"the adapter file holds {full}, which its config has no place for")
        if tuple(tensor.shape) != shapes[key]:
            raise AdapterFileError(
                f"{full} has shape {tuple(tensor.shape)} in the adapter file, but {needed.format(shapes[key])}"
            )
        if key.endswith("_labels") and tensor.dtype != LABEL_DTYPE:
            raise AdapterFileError(
                f"{full} is {tensor.dtype} in the adapter file instead of {LABEL_DTYPE}; the file was written or "
                "converted by something else"
            )
        if not key.endswith("_labels") and (not tensor.is_floating_point() or tensor.itemsize < 2):
            raise AdapterFileError(f"{full} is {tensor.dtype} in the adapter file; factors have 16 bits or more")


def _lacks(name: str, missing: list[str]) -> AdapterFileError:
    return AdapterFileError(
        f"the adapter file lacks {name}{OURS}{missing[0]} ({len(missing)} missing in this layer). "
        "Labels are never recomputed; load the complete file, written by save_pretrained"
    )


def check_contents(layers: Iterable[SavedLayer]) -> None:
    """Raise AdapterFileError unless updates are finite and labels partitions of their shapes, or all unplaced."""
    waiting, placed = [], False
    for layer in layers:
        layer.check_finite()
        if layer.is_unplaced:
            waiting.append(layer.name)
        else:
            layer.partition()
            placed = placed or layer.budget.has_choice
    if waiting and placed:
        raise AdapterFileError(
            f"the adapter file is damaged: {listed(waiting, 3)} has no placement, though other layers have one: it "
            "would be off without a word"
        )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise AdapterFileError if a tensor holds NaN or infinity: of a run that diverged, or a file that was changed."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            raise AdapterFileError(
                f"{key} holds NaN or infinite numbers in the adapter file: training had diverged when it was saved. "
                "Load an earlier checkpoint, or train again at a lower learning rate"
            )
