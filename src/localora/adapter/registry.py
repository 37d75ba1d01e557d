"""Registers PEFT type LOCALIZED. PEFT's types are a closed enum, so a member is added before the official call.

PEFT 0.21 asks the tuner model before it saves or loads tensors; PEFT 0.20 is made to.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

from localora.adapter.config import PEFT_TYPE_NAME, LocalizedConfig
from localora.adapter.model import LocalizedModel
from localora.adapter.state_check import keys_saved_in_full


def register() -> None:
    """Make PEFT know the type; harmless when it does. RuntimeError if another package has taken the name LOCALIZED."""
    taken_by = PEFT_TYPE_TO_TUNER_MAPPING.get(PEFT_TYPE_NAME)  # type: ignore[call-overload]
    if taken_by is LocalizedModel:
        return
    if taken_by is not None or PEFT_TYPE_NAME in PeftType.__members__:
        raise RuntimeError(
            f"PEFT type {PEFT_TYPE_NAME} is already registered, by {taken_by or 'PEFT itself'}; "
            "localora cannot be used in the same process"
        )
    # PEFT asks every transformers model whether it checkpoints under the old name; no user could do anything about it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    _add_enum_member()
    register_peft_method(name=PEFT_TYPE_NAME.lower(), config_cls=LocalizedConfig, model_cls=LocalizedModel)
    _ask_before_saving_and_loading()


def _add_enum_member() -> None:
    member = str.__new__(PeftType, PEFT_TYPE_NAME)
    member._name_ = PEFT_TYPE_NAME
    member._value_ = PEFT_TYPE_NAME
    type.__setattr__(PeftType, PEFT_TYPE_NAME, member)  # EnumType's own __setattr__ forbids it
    PeftType._member_map_[PEFT_TYPE_NAME] = member
    PeftType._member_names_.append(PEFT_TYPE_NAME)
    PeftType._value2member_map_[PEFT_TYPE_NAME] = member


def _ask_before_saving_and_loading() -> None:
    """Have PEFT 0.20 call the tuner model's checks, which PEFT 0.21 calls by itself."""
    if hasattr(BaseTuner, "_remap_adapter_state_dict_for_load"):
        return

    def asking_get(model: Any, state_dict: Any = None, adapter_name: str = "default", *args: Any, **kwargs: Any) -> Any:
        if model.peft_config[adapter_name].peft_type == PEFT_TYPE_NAME:
            LocalizedModel.before_saving(model, adapter_name)
        return get_peft_model_state_dict(model, state_dict, adapter_name, *args, **kwargs)

    def asking_set(model: Any, state: Any, adapter_name: str = "default", *args: Any, **kwargs: Any) -> Any:
        config = model.peft_config[adapter_name]
        if config.peft_type == PEFT_TYPE_NAME:
            renamed = keys_saved_in_full(model, adapter_name)
            in_model = {renamed.get(key, key): tensor for key, tensor in state.items()}
            LocalizedModel.before_loading(model, config, adapter_name, in_model)
        return set_peft_model_state_dict(model, state, adapter_name, *args, **kwargs)

    asking = {get_peft_model_state_dict: asking_get, set_peft_model_state_dict: asking_set}
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "peft"]:
        for name, value in list(vars(module).items()):
            if callable(value) and value in asking:
                setattr(module, name, asking[value])
