"""The root of every error that a user of localora can put right; each names the thing and the remedy.

Errors that belong to one part are defined there. They also derive from the built-in error that a caller of PEFT would
expect (ValueError, RuntimeError, TypeError), so `except ValueError` keeps working.
"""

from __future__ import annotations

from collections.abc import Iterable


class LocaloraError(Exception):
    """Something that the caller can put right: an input, a setting, a file, a moment. Anything else is our bug."""


class ConfigError(LocaloraError, ValueError):
    """An option that is unknown, out of its range, or contradicts another."""


class AdapterError(LocaloraError, ValueError):
    """An adapter that is not there, is of another kind, or cannot do what was asked of it."""


class ScheduleError(LocaloraError, RuntimeError):
    """A scheduled event that cannot happen, or that did not happen."""


class LayerError(LocaloraError, TypeError, ValueError):
    """A layer that no adapter can be put on."""


def listed(names: Iterable[str], shown: int = 12) -> str:
    """The first of the names and how many more there are, for a message."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"


class AdapterMissingError(AdapterError, FileNotFoundError):
    """A folder without an adapter, or without its weights."""
