"""Agreement between the processes of a distributed run: signals are summed, labels come from one process.

Every process must come through these functions in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from localora.errors import LocaloraError
from localora.placement.partition import Partition, Placement

T = TypeVar("T")


class ProcessError(LocaloraError, RuntimeError):
    """Another process of a distributed run failed, or holds something else than this one."""


def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """All-reduce each tensor in place; does nothing in a single process."""
    if not _distributed():
        return
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    for tensor in tensors:
        summed = tensor.to(device)
        dist.all_reduce(summed)
        tensor.copy_(summed)


@contextmanager
def failing_together() -> Iterator[None]:
    """An error in the body on one process is raised on every process, so that none waits for it for ever.

    Raises:
        ProcessError: the body went well here and failed on another process.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if _distributed():
        errors: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, None if error is None else f"{type(error).__name__}: {error}")
        failed = [f"process {rank} failed: {message}" for rank, message in enumerate(errors) if message]
        if failed and error is None:
            raise ProcessError("; ".join(failed))
    if error is not None:
        raise error


def processes() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)


def is_main_process() -> bool:
    """Whether this is process 0, which measures, writes and prints; known before they have joined."""
    return int(os.environ.get("RANK", 0)) == 0


def decide_once(decide: Callable[[], T]) -> T:
    """Run `decide` on process 0 and give its result to all, so that no rounding can make placements differ.

    An error on process 0 is raised on every process, so that none waits for the others for ever.
    """
    if not _distributed():
        return decide()
    box: list[object] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = decide()
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[1], Exception):
        raise box[1]
    return box[0]  # type: ignore[return-value]


def check_same(held: dict[str, str], remedy: str) -> None:
    """Raise ProcessError, naming process and thing, unless every process holds the same of each thing as process 0."""
    if not _distributed():
        return
    of_all: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(of_all, held)
    for rank, of_one in enumerate(of_all):
        for name, value in of_one.items():
            if value != of_all[0].get(name):
                raise ProcessError(f"process {rank} has another {name} than process 0; {remedy}")


def check_placement(partitions: Iterable[Partition]) -> None:
    """Raise ProcessError unless every process holds the same placement."""
    check_same({"placement": Placement.digest_of(partitions)}, "start all of them with the same seed")


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
