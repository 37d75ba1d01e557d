"""Waiting for what other processes and threads do. The clock decides nothing: it only ends a wait that never would."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 540.0  # seconds, for what takes a few on a quiet machine


def heed_interrupts() -> None:
    """Ctrl-C as in a terminal: what a shell starts in the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Return as soon as `condition` holds; fail with `what` when it has not for PATIENCE."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)
