"""The random state of a run, put back after work that the run itself does not have."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Python's, NumPy's and torch's generators are, after the body, as they were before it."""
    python, numpy_state = random.getstate(), np.random.get_state()
    # Of this process's own GPU: to ask for the state of another would start a context on it.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
