"""What a public function is called with, looked at before it works: a mix-up ends in a sentence, not in its middle."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from localora.errors import LocaloraError


class ArgumentError(LocaloraError, TypeError, ValueError):
    """An argument of a kind that the function cannot use; the message says what it wants."""


def check_model(function: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{function} needs the model, such as get_peft_model returns it; got {_kind(model)}")


def check_count(function: str, name: str, value: Any, least: int = 1) -> None:
    try:
        sound = not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        sound = False
    if not sound:
        raise ArgumentError(f"{function}: {name} must be an integer of at least {least}, got {_shown(value)}")
    if operator.index(value) > sys.maxsize:
        raise ArgumentError(f"{function}: {name} must be at most {sys.maxsize}, got {_shown(value)}")


def check_path(function: str, name: str, value: Any) -> None:
    if not isinstance(value, str | os.PathLike):
        raise ArgumentError(f"{function}: {name} must be a path, as text or as a pathlib.Path; got {_kind(value)}")


def check_kind(function: str, name: str, value: Any, kind: type | tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kind):
        raise ArgumentError(f"{function}: {name} must be {wanted}, got {_kind(value)}")


def check_callable(function: str, name: str, value: Any, signature: str) -> None:
    if value is not None and not callable(value):
        raise ArgumentError(f"{function}: {name} must be a function {signature}, got {_kind(value)}")


def check_batches(function: str, batches: Any) -> None:
    if isinstance(batches, Mapping):
        raise ArgumentError(f"{function} got one batch where it wants several; pass a list: [batch]")
    if isinstance(batches, str | bytes | Tensor) or not isinstance(batches, Iterable):
        raise ArgumentError(
            f"{function} needs batches: a list, a DataLoader or another iterable of dicts that the model takes as "
            f"keyword arguments; got {_kind(batches)}"
        )


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) > sys.maxsize:  # Python refuses to write thousands of digits
        return f"a number of {value.bit_length()} bits"
    return repr(value) if isinstance(value, int | float | str) or value is None else _kind(value)
