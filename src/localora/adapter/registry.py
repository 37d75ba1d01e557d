"""Registers PEFT type LOCALIZED. PEFT's types are a closed enum, so a member is added before the official call."""

from __future__ import annotations

import warnings

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

from localora.adapter.config import PEFT_TYPE_NAME, LocalizedConfig
from localora.adapter.model import LocalizedModel
from localora.adapter.peft_0_20 import ask_before_saving_and_loading


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
    ask_before_saving_and_loading(LocalizedModel, PEFT_TYPE_NAME)


def _add_enum_member() -> None:
    member = str.__new__(PeftType, PEFT_TYPE_NAME)
    member._name_ = PEFT_TYPE_NAME
    member._value_ = PEFT_TYPE_NAME
    type.__setattr__(PeftType, PEFT_TYPE_NAME, member)  # EnumType's own __setattr__ forbids it
    PeftType._member_map_[PEFT_TYPE_NAME] = member
    PeftType._member_names_.append(PEFT_TYPE_NAME)
    PeftType._value2member_map_[PEFT_TYPE_NAME] = member
