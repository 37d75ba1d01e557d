"""Load what is to be measured: a base model, or an adapter folder on the base model its config names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.adapter.adapter_file import CONFIG
from localora.lab.model import ModelError
from localora.lab.model.base import load_base_model
from localora.lab.model.dtype import default_device


@dataclass(frozen=True)
class Loaded:
    """A model, on the GPU where there is one. `adapter` (its folder) and `config` are None for a base model."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    base: str
    adapter: str | None = None
    config: PeftConfig | None = None


def load_adapted(name: str, base: str | None = None, dtype: torch.dtype = torch.float32) -> Loaded:
    """`name` is the folder of an adapter (ours, or any of PEFT's), or a base model as `load_base_model` takes it.

    Args:
        base: of an adapter, instead of the one its config names.

    Raises:
        ModelError: an adapter whose base model is not named, not found, or of other shapes; a folder of something else.
    """
    folder = Path(name).expanduser()
    if not (folder / CONFIG).is_file():
        if (folder / "adapter" / CONFIG).is_file():
            raise ModelError(f"{name!r} is the folder of a run; its adapter is in {folder / 'adapter'}")
        if base is not None:
            raise ModelError(f"a base model was given for {name!r}, which is no adapter (no {CONFIG}); leave it out")
        model, tokenizer = load_base_model(name, dtype)
        model.to(default_device())  # type: ignore[arg-type]
        return Loaded(model, tokenizer, base=name)
    config = _config(folder)
    base = base or config.base_model_name_or_path
    if not base:
        raise ModelError(f"the config of the adapter {name!r} names no base model; give it with --base")
    try:
        model, tokenizer = load_base_model(base, dtype)
    except ModelError as error:
        raise ModelError(
            f"the adapter {name!r} needs its base model: {error}\nIf it is elsewhere by now, give it with --base"
        ) from error
    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, OSError) as error:  # other shapes; other layers; no weights
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"the adapter {name!r} does not load on {base!r}: {reason}") from error
    return Loaded(adapted.to(default_device()), tokenizer, base, str(folder), config)


def _config(folder: Path) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:  # an unknown method; unknown or unreadable keys
        raise ModelError(f"{folder / CONFIG} is no config that this PEFT reads: {error}") from error
