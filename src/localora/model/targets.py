"""Which weight matrices of a model an adapter would be put on, and their shapes.

Shape legend
    m   rows of W (outputs)
    n   columns of W (inputs)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn


class Target(NamedTuple):
    """One weight matrix: the name of its module, m outputs, n inputs."""

    name: str
    m: int
    n: int


def resolve_targets(model: nn.Module, spec: str | Sequence[str]) -> list[Target]:
    """The matrices that PEFT's `target_modules=spec` adapts, in the model's order, the output head excluded.

    `spec` is "all-linear" or a list of module names (a name matches itself and any `*.name`).

    Raises:
        ValueError: nothing matches, or a listed name matches nothing (the message lists the names there are).
    """
    raise NotImplementedError
