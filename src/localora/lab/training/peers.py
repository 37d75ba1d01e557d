"""The processes that torchrun or accelerate launch started for one run, one a GPU: joined, watched, and left.

All of them do the same work on their share of each batch. Process 0 alone measures, writes and prints; what it found
the others are told, so that all hold the same record. One that is killed says nothing, and NCCL waits for hours: so
every process holds a connection to every other. It closes by itself when a process ends, however that ends.
"""

from __future__ import annotations

import os
import platform
import selectors
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState

from localora.errors import LocaloraError
from localora.lifecycle.processes import ProcessError

WAIT = timedelta(hours=12)  # for process 0, which may be scoring a long test
NOTICED = 10.0  # seconds that an error of communication waits for word of who is gone
GRACE = 20.0  # seconds that a process has to end by itself once another is gone, before it is ended
DONE = b"."  # is sent when a run is over here: a process may go then


class Peers:
    """The other processes, as this one sees them."""

    def __init__(self) -> None:
        self.rank, count = dist.get_rank(), dist.get_world_size()
        own = _own_address()
        server = socket.create_server((own, 0), backlog=count)
        known: list[tuple[str, int, int, str]] = [("", 0, 0, "")] * count
        dist.all_gather_object(known, (own, server.getsockname()[1], os.getpid(), platform.node()))
        self.names = [f"process {rank} (process id {pid} on {host})" for rank, (_, _, pid, host) in enumerate(known)]
        self.links: dict[int, socket.socket] = {}
        for rank in range(self.rank):
            self.links[rank] = socket.create_connection(known[rank][:2])
            self.links[rank].sendall(self.rank.to_bytes(4, "big"))
        while len(self.links) < count - 1:
            link, _ = server.accept()
            self.links[int.from_bytes(link.recv(4, socket.MSG_WAITALL), "big")] = link
        server.close()
        self.runs, self.done = 0, dict.fromkeys(self.links, 0)
        self.lost: str | None = None
        self.noticed, self.left = threading.Event(), threading.Event()
        self.left.set()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, all processes are needed: one that ends before its own block is over ends this one too.

        Raises:
            ProcessError: in the place of the error that the end of another process led to here; names that process.
        """
        self.runs += 1
        self.left.clear()
        try:
            yield
        except Exception as error:
            explained = self.explained(error)
            if explained is error:
                raise
            raise explained from error
        else:
            for link in self.links.values():
                with suppress(OSError):
                    link.sendall(DONE)
        finally:
            self.left.set()

    def explained(self, error: Exception) -> Exception:
        """The same error, or, where it is that of a connection to a process that is gone, one that names it."""
        if isinstance(error, LocaloraError) or not isinstance(error, RuntimeError | OSError):
            return error
        return ProcessError(self._words()) if self.noticed.wait(NOTICED) else error

    def _words(self) -> str:
        return (
            f"{self.lost} ended before the run did, so {self.names[self.rank].partition(' (')[0]} ends too. Its own "
            "output says why, unless it was killed (no memory?); --resume continues from the last checkpoint"
        )

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, link in self.links.items():
                selector.register(link, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    try:
                        told = self.links[key.data].recv(4096)
                    except OSError:
                        told = b""
                    self.done[key.data] += len(told)
                    if not told:
                        selector.unregister(key.fileobj)
                        self._gone(key.data)

    def _gone(self, rank: int) -> None:
        if self.left.is_set() or self.done[rank] >= self.runs:
            return
        self.lost = self.names[rank]
        self.noticed.set()
        # At once: a launcher that notices too ends this process before it could say more.
        print(f"{self.lost} is gone; this one ends within {GRACE:.0f} s", file=sys.stderr, flush=True)
        if not self.left.wait(GRACE):  # it waits for the other in a collective
            print(f"error: {self._words()}", file=sys.stderr, flush=True)
            os._exit(1)


def _own_address() -> str:
    """By which the others reach this machine: that of the way to where they all met."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ.get("MASTER_ADDR", "127.0.0.1"), 9))
        return str(probe.getsockname()[0])


_peers: list[Peers] = []  # of this process's group, once it has joined


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
