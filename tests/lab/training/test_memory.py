"""Peak memory sees what was there in between, and not what came before."""

from __future__ import annotations

import time

import numpy as np

from localora.lab.training.memory import SAMPLE_SECONDS, PeakMemory

MIB = 2**20


def test_the_peak_is_that_of_the_block() -> None:
    with PeakMemory() as calm:
        time.sleep(2 * SAMPLE_SECONDS)
    with PeakMemory() as busy:
        block = np.ones(300 * MIB, dtype=np.uint8)
        time.sleep(4 * SAMPLE_SECONDS)
        del block
        time.sleep(2 * SAMPLE_SECONDS)
    assert 250 < busy.mib - calm.mib < 500
    with PeakMemory() as after:
        time.sleep(2 * SAMPLE_SECONDS)
    assert after.mib < busy.mib - 250
