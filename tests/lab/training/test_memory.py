"""Peak memory sees what was there in between, and not what came before."""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
import pytest

from localora.lab.training import memory
from localora.lab.training.memory import PeakMemory
from patience import wait_until

MIB = 2**20


class Counted(psutil.Process):
    """This process, which counts how often it was looked at."""

    looks = 0

    def memory_info(self) -> Any:
        seen = super().memory_info()
        Counted.looks += 1
        return seen


def two_more_looks() -> None:
    """The first may have begun before what was done last."""
    before = Counted.looks
    wait_until(lambda: Counted.looks >= before + 2, "two samples")


def test_the_peak_is_that_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.psutil, "Process", Counted)
    with PeakMemory() as calm:
        two_more_looks()
    with PeakMemory() as busy:
        block = np.ones(300 * MIB, dtype=np.uint8)
        two_more_looks()
        del block
        two_more_looks()
    assert 250 < busy.mib - calm.mib < 500
    with PeakMemory() as after:
        two_more_looks()
    assert after.mib < busy.mib - 250
