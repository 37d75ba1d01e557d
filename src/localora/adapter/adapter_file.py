"""The one reader of a saved adapter: its files are held against its config, then read as labels and factors.

A folder that comes from a stranger may say anything. Nothing is allocated before every tensor's shape, as the header of
the file states it, is the one that the config needs: the file's own size bounds them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from localora.adapter.config import PEFT_TYPE_NAME, LocalizedConfig
from localora.adapter.layer_state import UnplacedAdapterError
from localora.adapter.saved_layers import AdapterFileError, SavedLayer, check_contents, check_finite, layers_of
from localora.errors import AdapterError, AdapterMissingError, ConfigError
from localora.files import KeyTwiceError, unique_keys

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
DTYPES = {  # as a file's header spells them; factors of fewer bits have lost what training put there
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class AdapterFile:
    """A whole saved adapter, checked."""

    config: LocalizedConfig
    layers: dict[str, SavedLayer]
    others: dict[str, Tensor]  # of modules_to_save

    def check_placed(self) -> None:
        """Raise UnplacedAdapterError if it was saved before it was placed."""
        for name, layer in self.layers.items():
            if layer.is_unplaced:
                raise UnplacedAdapterError(
                    f"the adapter was saved before it was placed ({name}); there is nothing to read"
                )


def read_adapter(folder: str | Path) -> AdapterFile:
    """The adapter that `save_pretrained` left in a folder; its base model isn't needed.

    Raises:
        AdapterMissingError: no adapter there.
        AdapterError: one of another method.
        ConfigError, AdapterFileError: a config or tensors that no adapter has; each by file and key.
    """
    folder = Path(folder)
    config = read_config(folder)
    path = weights_in(folder)
    if path is None:
        raise AdapterMissingError(f"{folder} has no {WEIGHTS}; save the adapter with save_pretrained")
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    layers, others = layers_of(config, tensors)
    check_finite(others)
    check_contents(layers.values())
    return AdapterFile(config, layers, others)


def read_config(folder: Path) -> LocalizedConfig:
    """The config in a folder. Raises as :func:`read_adapter`."""
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterMissingError(f"{folder} holds no adapter (no {CONFIG})")
    config = LocalizedConfig.from_pretrained(str(folder))
    assert isinstance(config, LocalizedConfig)
    return config


def is_localized(folder: Path) -> bool:
    """Whether a folder's adapter is one of ours."""
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("peft_type") == PEFT_TYPE_NAME


def check_config_file(path: Path) -> None:
    """Refuse a file that is no JSON object, that says a thing twice, or that is the config of another method."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
        json.dumps(values, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair can be escaped, not written
    except KeyTwiceError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no object of options")
    if values.get("peft_type") != PEFT_TYPE_NAME:
        raise AdapterError(f"{path.parent} holds an adapter of type {values.get('peft_type')}, not a localora adapter")


def weights_in(folder: Path) -> Path | None:
    """The file of tensors in a folder; None if there is none. AdapterFileError for a pickled one: it can run code."""
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    if (folder / PICKLED).exists():
        raise AdapterFileError(
            f"{folder / PICKLED} is pickled, and unpickling a stranger's file can run its code; localora reads "
            f"{WEIGHTS} only. If the file is yours, load it with torch and write it with safetensors"
        )
    return None


def described(path: Path) -> dict[str, Tensor]:
    """Shapes and dtypes of a file's tensors, by its header alone: tensors on the meta device, which have no numbers.

    Raises AdapterFileError for what is no safetensors file, empty tensors, and dtypes that no adapter has.
    """
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                entry = file.get_slice(key)
                shape, dtype = list(entry.get_shape()), str(entry.get_dtype())
                if dtype not in DTYPES:
                    raise AdapterFileError(f"{path}: {key} is of dtype {dtype}; an adapter has {', '.join(DTYPES)}")
                if 0 in shape:
                    raise AdapterFileError(f"{path}: {key} is empty, of shape {tuple(shape)}")
                tensors[key] = torch.empty(shape, dtype=DTYPES[dtype], device="meta")
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors


def check_before_loading(folder: Path, config: LocalizedConfig) -> None:
    """Hold the tensors that a folder's file describes against the config, before a model makes room for them."""
    path = weights_in(folder)
    if path is not None:
        layers_of(config, described(path))
