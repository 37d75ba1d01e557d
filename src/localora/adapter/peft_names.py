"""Options under the names that users of PEFT's LoRA know; those that localora lacks are refused by name."""

from __future__ import annotations

import dataclasses
import functools
from functools import cache
from typing import Any, TypeVar

from peft import LoraConfig

from localora.adapter.options import default_of, nearest, options_of
from localora.errors import ConfigError

Config = TypeVar("Config", bound=type)


class UnknownOptionError(ConfigError, TypeError):
    """An option that a config has not; a TypeError too, as an unexpected keyword argument is."""


SAME = {"lora_alpha": "alpha", "lora_dropout": "dropout", "init_lora_weights": "init_weights"}
BECAUSE = {
    "bias": "biases are not trained: the export must be plain LoRA that every engine serves; use bias='none'",
    "use_dora": "DoRA's trained magnitudes make the update depend on the base weight, so it is no sum of low-rank "
    "terms that can be placed, merged and exported exactly",
    "fan_in_fan_out": "each layer says itself how its weight is stored; leave it out",
    "trainable_token_indices": "embeddings are not adapted; put the embedding into modules_to_save",
    "init_lora_weights": "the factors start as LoRA's do by default: init_weights=True, or False for a test",
}


def accept_peft_names(config_class: Config) -> Config:
    """Let a config's `__init__` take `lora_alpha` and its like, and name what is near to an option it does not know."""
    init = config_class.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 (it takes the place of one)
        init(self, *args, **_translated(config_class, kwargs))

    config_class.__init__ = __init__  # type: ignore[misc]
    return config_class


def _translated(config_class: type, given: dict[str, Any]) -> dict[str, Any]:
    known, lora = options_of(config_class), _lora_defaults()
    options: dict[str, Any] = {}
    for key, value in given.items():
        name = SAME.get(key, key)
        if name in options:
            both = " and ".join(sorted(k for k in given if SAME.get(k, k) == name))
            raise ConfigError(f"{both} are one option of {config_class.__name__}; give it once")
        if name in known and not (key == "init_lora_weights" and not isinstance(value, bool)):
            options[name] = value
        elif key not in lora:
            hint = nearest(key, (*known, *SAME)) or "; it may come from a newer localora, or from another method"
            raise UnknownOptionError(f"unknown key {key!r} for {config_class.__name__}{hint}")
        elif value != lora[key]:  # what LoRA does when it is left out is what we do
            reason = f", because {BECAUSE[key]}" if key in BECAUSE else f": peft.LoraConfig has {key}, localora has not"
            raise UnknownOptionError(f"{key}={value!r} is not supported{reason}")
    return options


@cache
def _lora_defaults() -> dict[str, Any]:
    return {field.name: default_of(field) for field in dataclasses.fields(LoraConfig)}
