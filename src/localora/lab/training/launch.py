"""Join the processes that torchrun or accelerate launch started for one run, one a GPU, and take leave of them.

All of them do the same work on their share of each batch. Process 0 alone measures, writes and prints; what it found
the others are told, so that all hold the same record.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState

from localora.lab.training.peers import Peers

_peers: list[Peers] = []  # of this process's group, once it has joined
WAIT = timedelta(hours=12)  # for process 0, which may be scoring a long test


def join_processes() -> None:
    """Join the processes that were started together and take the GPU that is this one's; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        PartialState(cpu=not torch.accelerator.is_available(), timeout=WAIT)


@contextmanager
def all_at_work() -> Iterator[None]:
    """Inside, the end of another process ends this one, with a message that names the other.

    Raises:
        ProcessError: names it.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        yield
        return
    if not _peers:
        _peers.append(Peers())
    with _peers[0].at_work():
        yield


def explained(error: Exception) -> Exception:
    """The error, or one that names the process whose end led to it."""
    return _peers[0].explained(error) if _peers else error


def leave_processes() -> None:
    """Take leave of the others at the end of the program."""
    if dist.is_initialized():
        _peers.clear()
        dist.destroy_process_group()
