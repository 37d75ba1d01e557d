"""What the sections of a recipe share; a section of one of our methods is built from the options of its config."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, create_model

from localora.adapter.config import LocalizedConfig
from localora.adapter.options import Option, options_of


def _path(name: str) -> str:
    if "\0" in name:
        raise ValueError("holds a null byte, which no path can")
    return name


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # YAML reads yes, no, on and off as these
        raise ValueError("must be a number; yes, no, true and false are none")
    return value


Number = Annotated[float, BeforeValidator(_number)]
PositiveInt = Annotated[StrictInt, Field(ge=1, lt=2**31)]  # what is beyond is a slip, and would not end
PathName = Annotated[str, AfterValidator(_path)]


class Section(BaseModel):
    """A group of keys; frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def built_from(config_class: type[LocalizedConfig], base: type[BaseModel], without: Collection[str] = ()) -> Any:
    """A model derived from `base` with a field for each option that recipes have, but those in `without`."""
    fields: dict[str, Any] = {
        name: (_with_bounds(option.hint, option.bounds), recipe_field(option, option.default))
        for name, option in options_of(config_class).items()
        if option.recipe and name not in without
    }
    return create_model(f"{config_class.__name__}Section", __base__=base, **fields)


def recipe_field(option: Option, default: Any) -> Any:
    choices = typing.get_args(option.hint) if typing.get_origin(option.hint) is Literal else ()
    return Field(default=default, description=": ".join([option.help, *([", ".join(choices)] if choices else [])]))


def _with_bounds(hint: Any, bounds: dict[str, Any]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return Union[tuple(_with_bounds(argument, bounds) for argument in arguments)]  # noqa: UP007 (of a tuple)
    if origin is list:
        item = _with_bounds(arguments[0], bounds)
        return list[item]  # type: ignore[valid-type]
    if hint is bool:
        return StrictBool
    if hint is int:
        return Annotated[StrictInt, Field(**{"lt": 2**31, **bounds})]
    if hint is float:
        return Annotated[Number, Field(allow_inf_nan=False, **bounds)]
    return hint
