"""What PEFT 0.20 lacks of what the tuner model builds on; with PEFT 0.21 and later nothing here does anything.

PEFT 0.21 names the error of a target that matches nothing, and asks the tuner model before it saves or loads tensors.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner

from localora.adapter.state_check import keys_saved_in_full

if TYPE_CHECKING:
    from localora.adapter.model import LocalizedModel

__all__ = ["NoMatchingPeftModuleError", "ask_before_saving_and_loading"]

try:
    from peft.utils.error import NoMatchingPeftModuleError
except ImportError:
    NoMatchingPeftModuleError = ValueError  # type: ignore[misc, assignment]  # a kind of it from 0.21 on


def ask_before_saving_and_loading(tuner: type[LocalizedModel], peft_type: str) -> None:
    """Have PEFT 0.20 call the tuner model's checks, which PEFT 0.21 calls by itself."""
    if hasattr(BaseTuner, "_remap_adapter_state_dict_for_load"):
        return

    def asking_get(model: Any, state_dict: Any = None, adapter_name: str = "default", *args: Any, **kwargs: Any) -> Any:
        if model.peft_config[adapter_name].peft_type == peft_type:
            tuner.before_saving(model, adapter_name)
        return get_peft_model_state_dict(model, state_dict, adapter_name, *args, **kwargs)

    def asking_set(model: Any, state: Any, adapter_name: str = "default", *args: Any, **kwargs: Any) -> Any:
        config = model.peft_config[adapter_name]
        if config.peft_type == peft_type:
            renamed = keys_saved_in_full(model, adapter_name)
            tuner.before_loading(model, config, adapter_name, {renamed.get(key, key): state[key] for key in state})
        return set_peft_model_state_dict(model, state, adapter_name, *args, **kwargs)

    asking = {get_peft_model_state_dict: asking_get, set_peft_model_state_dict: asking_set}
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "peft"]:
        for name, value in list(vars(module).items()):
            if callable(value) and value in asking:
                setattr(module, name, asking[value])
