"""One thread for work made of many small matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread inside; also a decorator.

    Waking a second thread costs more than these operations themselves (on two busy cores 0.11 s against 0.8 s for a
    plan of a 576 x 1536 sketch), and one thread sums in one order, so labels do not depend on the machine's cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
