"""The learning rate after an event: low for the factors that just started, and back within a few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Rewarm:
    """Multiplies the learning rate of each of an optimizer's steps by `factor()`, and puts it back after the step.

    So a scheduler, which sets the next rate from this one or from the first, sees what it would have seen without.
    """

    def __init__(self, optimizer: Any, factor: Callable[[], float]) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has no hooks
        self.factor = factor
        self.rates: list[Any] = []
        self.handles = [inner.register_step_pre_hook(self._lower), inner.register_step_post_hook(self._restore)]

    def close(self) -> None:
        """Let the optimizer go."""
        for handle in self.handles:
            handle.remove()

    def _lower(self, optimizer: Any, *_: Any) -> None:
        self.rates = [group["lr"] for group in optimizer.param_groups]
        factor = self.factor()
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    def _restore(self, optimizer: Any, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
