"""Peak memory sees what was there in between, and not what came before."""

from __future__ import annotations

import os
from pathlib import Path
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


@pytest.mark.parametrize("marked", [True, False], ids=["mark", "samples"])
def test_the_peak_is_that_of_the_block(marked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.psutil, "Process", Counted)
    if not marked:
        monkeypatch.setattr(memory, "MARK", tmp_path / "no" / "mark")
    elif not os.access(memory.MARK, os.W_OK):
        pytest.skip("the kernel's high-water mark cannot be set back here")
    look = (lambda: None) if marked else two_more_looks
    with PeakMemory() as calm:
        look()
    with PeakMemory() as busy:
        block = np.ones(300 * MIB, dtype=np.uint8)
        look()
        del block
        look()
        assert busy.process_mib - busy.before_mib > 250  # also before its end
    assert 250 < busy.process_mib - calm.process_mib < 500
    with PeakMemory() as after:
        look()
    assert after.process_mib < busy.process_mib - 250
