"""Every error class of ours has one root, and is caught as the built-in error that it also is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import localora
from localora.errors import LocaloraError

BUILT_IN = (ValueError, RuntimeError, TypeError, OSError)


def error_classes() -> set[type[Exception]]:
    found = set()
    for module in pkgutil.walk_packages(localora.__path__, "localora."):
        if any(part in module.name for part in ("__main__", ".inside", ".axolotl")):  # the last needs axolotl
            continue
        for _, member in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(member, Exception) and member.__module__.startswith("localora."):
                found.add(member)
    return found


def test_one_root() -> None:
    classes = error_classes()
    assert {"PlacementError", "RecipeError", "PlanError", "ConfigError"} <= {error.__name__ for error in classes}
    assert [error.__name__ for error in classes if not issubclass(error, LocaloraError)] == []


def test_each_is_also_what_a_caller_of_peft_expects() -> None:
    for error in error_classes() - {LocaloraError}:
        assert issubclass(error, BUILT_IN), error
