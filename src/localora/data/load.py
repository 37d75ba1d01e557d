"""Load a task from its spec: the one entry point of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localora.data.example import TaskData
from localora.data.spec import DataSpec


def load_task(spec: Mapping[str, Any] | DataSpec) -> TaskData:
    """Generate or read the task that `spec` (the keys of :class:`DataSpec`) describes.

    The splits share no normalised prompt, and are the same for the same spec on every machine.

    Raises:
        pydantic.ValidationError: unknown or contradictory keys.
        DataError: a missing file, a malformed line (file:line), missing keys, an unknown schema, no examples.
        OverlapError: a prompt of the training split is also in the validation or test file.
    """
    raise NotImplementedError
