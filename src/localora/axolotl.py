"""The plugin that gives axolotl `adapter: g-lora` and `adapter: cps-lora`. Imported by axolotl alone, which it needs.

    plugins: [localora.axolotl.LocaloraPlugin]
    adapter: cps-lora
    lora_r: 16
    lora_target_linear: true
    localora: {clusters: 4}

axolotl's own `lora_` and `peft_` keys mean what they mean there; `localora` holds the config's other options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from peft import PeftModel, get_peft_model
from pydantic import BaseModel
from torch import nn
from transformers import TrainerCallback

from localora.adapter.config import METHODS, LocalizedConfig
from localora.errors import ConfigError
from localora.lifecycle.callback import LocalizationCallback

# axolotl's key -> peft.LoraConfig's. What localora has not is given on, to be refused with its reason.
KEYS = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_exclude_modules": "exclude_modules",
    "lora_modules_to_save": "modules_to_save",
    "lora_rank_pattern": "rank_pattern",
    "lora_alpha_pattern": "alpha_pattern",
    "lora_fan_in_fan_out": "fan_in_fan_out",
    "peft_layers_to_transform": "layers_to_transform",
    "peft_layers_pattern": "layers_pattern",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "peft_layer_replication": "layer_replication",
    "peft_init_lora_weights": "init_lora_weights",
    "peft_trainable_token_indices": "trainable_token_indices",
    "peft_ensure_weight_tying": "ensure_weight_tying",
}
TASKS = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}  # by the model's class


class LocaloraArgs(BaseModel):
    """The key that axolotl's config gets."""

    localora: dict[str, Any] | None = None


class LocaloraPlugin(BasePlugin):
    """Makes the adapter, or loads it, and has it placed and its events done by :class:`LocalizationCallback`."""

    def get_input_args(self) -> str:
        return "localora.axolotl.LocaloraArgs"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        return [AdapterCapabilities(name=name) for name in METHODS]

    def load_adapter(
        self, model: nn.Module, cfg: Any, inference: bool = False, config_only: bool = False
    ) -> tuple[nn.Module | None, LocalizedConfig] | None:
        """The adapted model and its config; `config_only` for trainers that adapt the model themselves.

        Raises:
            ConfigError: keys that no adapter of ours has, by name.
        """
        if cfg.adapter not in METHODS:
            return None
        config = config_of(model, cfg)
        if config_only:
            return None, config
        kept = cfg.peft_autocast_adapter_dtype
        options = {} if kept is None else {"autocast_adapter_dtype": kept}
        if cfg.lora_model_dir:
            return PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference, **options), config
        return get_peft_model(model, config, **options), config

    def add_callbacks_pre_trainer(self, cfg: Any, model: nn.Module) -> list[TrainerCallback]:
        return [LocalizationCallback()] if cfg.adapter in METHODS else []


def config_of(model: nn.Module, cfg: Any) -> LocalizedConfig:
    """What axolotl's config says of the adapter, as ours.

    Raises:
        ConfigError: an option that is not known, given twice, or not supported.
    """
    options: dict[str, Any] = {
        peft: dict(value) if isinstance(value, Mapping) else value
        for key, peft in KEYS.items()
        if (value := cfg[key]) is not None
    }
    if cfg.lora_target_linear:
        if options.get("target_modules"):
            raise ConfigError("lora_target_linear is all linear layers; leave lora_target_modules out, or it")
        options["target_modules"] = "all-linear"
    if cfg.peft and cfg.peft.loftq_config:
        options["init_lora_weights"] = "loftq"
    own = dict(cfg.localora or {})
    twice = [key for key in own if key in options]
    if twice:
        raise ConfigError(f"{', '.join(twice)} stands in localora and among axolotl's own keys; give it once")
    task = next((task for part, task in TASKS.items() if part in type(model).__name__), "CAUSAL_LM")
    return METHODS[cfg.adapter](**options, **own, task_type=task)
