"""Peak memory of a stretch of work."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import threading
from pathlib import Path

import psutil
import torch

MARK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # of Linux
RESET_MARK = "5"
SAMPLE_SECONDS = 0.05
MIB = 2**20


class PeakMemory:
    """Context manager; what it says is the peak between its beginning and its end, or now while it is open.

    Of this process it is the kernel's high-water mark, which is set back first; where that cannot be done (not Linux),
    samples from a thread. Freed memory is given back first, so that what came before does not count.
    """

    def __init__(self) -> None:
        self._on_gpu = torch.cuda.is_available()
        self._sampled = 0
        self._sampler: threading.Thread | None = None
        self._at_end: tuple[float, float] | None = None
        self._stop = threading.Event()
        self._process = psutil.Process()

    @property
    def mib(self) -> float:
        """Of the GPU's allocator where there is a GPU, else of this process."""
        return self._at_end[0] if self._at_end else self._peaks()[0]

    @property
    def process_mib(self) -> float:
        return self._at_end[1] if self._at_end else self._peaks()[1]

    def __enter__(self) -> PeakMemory:
        gc.collect()
        libc = ctypes.util.find_library("c")
        if libc and hasattr(ctypes.CDLL(libc), "malloc_trim"):
            ctypes.CDLL(libc).malloc_trim(0)
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.before_mib = self._process.memory_info().rss / MIB
        try:
            MARK.write_text(RESET_MARK)
        except OSError:
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._at_end = self._peaks()
        if self._sampler is not None:
            self._stop.set()
            self._sampler.join()

    def _peaks(self) -> tuple[float, float]:
        if self._sampler is not None:
            process = max(self._sampled, self._process.memory_info().rss) / MIB
        else:
            line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
            process = int(line.split()[1]) / 1024
        return (torch.cuda.max_memory_allocated() / MIB if self._on_gpu else process), process

    def _sample(self) -> None:
        while True:
            self._sampled = max(self._sampled, self._process.memory_info().rss)
            if self._stop.wait(SAMPLE_SECONDS):
                return
