"""Peak memory of a stretch of work."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil
import torch

SAMPLE_SECONDS = 0.05


class PeakMemory:
    """Context manager; `mib` is the peak inside it: of the GPU where there is one, else of this process.

    The process is sampled from a thread, since the operating system's own peak covers the whole life of the process
    and several runs may share one.
    """

    def __init__(self) -> None:
        self.on_gpu = torch.cuda.is_available()
        self._bytes = 0
        self._stop = threading.Event()
        self._process = psutil.Process()

    @property
    def mib(self) -> float:
        return self._bytes / 2**20

    def __enter__(self) -> PeakMemory:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self.on_gpu:
            self._bytes = torch.cuda.max_memory_allocated()

    def _sample(self) -> None:
        while True:
            self._bytes = max(self._bytes, self._process.memory_info().rss)
            if self._stop.wait(SAMPLE_SECONDS):
                return
