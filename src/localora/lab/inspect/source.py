"""What can be inspected, brought to one form: names of layers, and a matrix for each on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeGuard

from peft import LoraConfig, PeftConfig, PeftType, get_peft_model_state_dict
from torch import Tensor, nn

from localora.adapter.adapter_file import CONFIG
from localora.adapter.config import LocalizedConfig
from localora.adapter.lora_file import lora_factors, read_lora_folder
from localora.arguments import check_path
from localora.export.sources import Adapter, read_folder, read_model
from localora.lab.inspect import InspectionError
from localora.lab.inspect.checkpoints import CheckpointPair
from localora.lab.inspect.matrix import Dense, Factors, Matrix

Inspectable = nn.Module | str | Path | Mapping[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Layers to inspect."""

    description: str  # one line, for the report
    names: tuple[str, ...]  # of the layers, in order of depth
    load: Callable[[str], Matrix]  # dW of a layer
    skipped: dict[str, str]  # what is left out, and why
    by_construction: bool = False  # the adapter can express clusters only, so that finding some says nothing


def open_source(
    source: Inspectable, base: str | Path | None, adapter_name: str, layers: Sequence[str] | None
) -> Source:
    """Recognise a source and choose its layers; `layers` holds names or shell patterns.

    Raises:
        InspectionError: nothing that can be inspected, or patterns that match nothing.
    """
    if base is not None:
        if isinstance(source, nn.Module | Mapping):
            raise InspectionError("base= goes with the folder of a fine-tuned checkpoint")
        return _checkpoints(CheckpointPair(Path(base), Path(source)), Path(source), Path(base), layers)
    if isinstance(source, nn.Module):
        found = _model(source, adapter_name)
    elif isinstance(source, Mapping):
        found = _matrices(source)
    else:
        check_path("inspect_delta", "source", source)
        found = _folder(Path(source))
    return replace(found, names=_chosen(found.names, layers))


def _checkpoints(pair: CheckpointPair, tuned: Path, base: Path, layers: Sequence[str] | None) -> Source:
    skipped = {name: f"{len(shape)}-dimensional" for name, shape in pair.others.items()}
    names = pair.names if layers else [name for name in pair.names if name not in pair.tables]
    chosen = _chosen(names, layers)
    skipped |= {name: "embedding table or output head" for name in pair.tables if name not in chosen}
    for name in chosen:  # before the hours of work, not in their middle
        pair.check_shape(name)
    description = f"full fine-tuning: {tuned.name} minus {base.name}"
    return Source(description, chosen, lambda name: Dense(pair.delta(name)), skipped)


def _folder(folder: Path) -> Source:
    if not folder.is_dir():
        raise InspectionError(f"{folder} is no folder")
    if not (folder / CONFIG).is_file():
        raise InspectionError(
            f"{folder} holds no adapter (no adapter_config.json); for a full checkpoint, name the one it was "
            "fine-tuned from with base="
        )
    config = PeftConfig.from_pretrained(str(folder))
    if isinstance(config, LocalizedConfig):
        return _localized(read_folder(folder))
    if _is_lora(config):
        return _lora(*read_lora_folder(folder))
    kind = getattr(config.peft_type, "value", config.peft_type)  # a damaged config has none
    raise InspectionError(
        f"{folder} holds an adapter of type {kind}; merge it, save the model, and inspect both checkpoints with base="
    )


def has_factors(config: PeftConfig) -> bool:
    """Whether an adapter of this config is dW = B A in every layer, so that its file alone says what dW is."""
    if isinstance(config, LocalizedConfig):
        return True
    return _is_lora(config) and not (config.use_dora or config.use_bdlora or config.target_parameters)


def _is_lora(config: PeftConfig | None) -> TypeGuard[LoraConfig]:
    """AdaLoRA's config is a LoraConfig, too."""
    return isinstance(config, LoraConfig) and config.peft_type == PeftType.LORA


def _model(model: nn.Module, adapter_name: str) -> Source:
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if isinstance(config, LocalizedConfig):
        return _localized(read_model(model, adapter_name))
    if _is_lora(config):
        state = get_peft_model_state_dict(model, adapter_name=adapter_name)
        return _lora(config, {key: tensor.detach().cpu() for key, tensor in state.items()})
    raise InspectionError(f"the model has no localora or LoRA adapter called {adapter_name!r}")


def _localized(adapter: Adapter) -> Source:
    config = adapter.config
    factors = {name: (B, A) for name, (A, B) in adapter.factors.items()}
    skipped = dict.fromkeys(adapter.other_tensors, "saved in full, without the weights it started from")
    clustered = config.method == "cps-lora" and getattr(config, "clusters", 1) > 1
    return _factored(f"{config.method} adapter, r {config.r}", factors, skipped, clustered)


def _lora(config: LoraConfig, tensors: Mapping[str, Tensor]) -> Source:
    if config.use_bdlora:
        raise InspectionError("a factor of BD-LoRA is block-diagonal; merge it, save the model, and give base=")
    factors, others = lora_factors(config, dict(tensors))
    return _factored(f"LoRA adapter, r {config.r}", factors, dict.fromkeys(others, "no pair of LoRA matrices"), False)


def _factored(
    description: str, factors: dict[str, tuple[Tensor, Tensor]], skipped: dict[str, str], by_construction: bool
) -> Source:
    return Source(description, tuple(factors), lambda name: Factors(*factors[name]), skipped, by_construction)


def _matrices(deltas: Mapping[str, Tensor]) -> Source:
    for name, delta in deltas.items():
        if delta.ndim != 2 or not delta.is_floating_point():
            raise InspectionError(f"{name} must be a floating-point matrix, got {tuple(delta.shape)} of {delta.dtype}")
    return Source("matrices in memory", tuple(deltas), lambda name: Dense(deltas[name]), {})


def _chosen(names: Sequence[str], layers: Sequence[str] | None) -> tuple[str, ...]:
    """The names that match, by depth: the same order from every kind of source."""
    for pattern in layers or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(list(names)[:3])
            raise InspectionError(f"no layer matches {pattern!r}; there are {len(names)}, such as {shown}")
    matching = [name for name in names if not layers or any(fnmatchcase(name, pattern) for pattern in layers)]
    return tuple(sorted(matching, key=depth_order))


def depth_order(name: str) -> list[tuple[int, str]]:
    """The key that sorts layers by depth: layers.9 comes before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
