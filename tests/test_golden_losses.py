"""Losses of short runs are those of the day they were written: what a change does to training, it does on purpose."""

from __future__ import annotations

import json

import pytest

from golden_losses import FILE, RUNS, losses, platform_key

KNOWN = json.loads(FILE.read_text())
ELSEWHERE = "x86_64 AVX2"  # stands in for platforms without an entry
SAME, OTHER = 1e-5, 1e-4  # relative. Between the platforms in the file curves differ by 3e-6 at most (measured)


@pytest.mark.parametrize("run", RUNS)
def test_losses_are_those_of_the_file(run: str) -> None:
    key = platform_key()
    expected, tolerance = (KNOWN[key], SAME) if key in KNOWN else (KNOWN[ELSEWHERE], OTHER)
    assert losses(run) == pytest.approx(expected[run], rel=tolerance)


def test_the_tolerance_for_other_platforms_holds_between_those_in_the_file() -> None:
    for curves in KNOWN.values():
        for run, curve in curves.items():
            assert curve == pytest.approx(KNOWN[ELSEWHERE][run], rel=OTHER / 10)
        assert len({tuple(curve) for curve in curves.values()}) == len(RUNS)
