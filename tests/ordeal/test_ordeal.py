"""The ordeal's short form, and that it would notice: each check is shown something broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.ordeal.__main__ import ORDEALS
from benchmarks.ordeal.outcome import Tally, table
from benchmarks.ordeal.tiny import save_model


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDEALS)
def test_nothing_that_is_promised_breaks(tmp_path: Path, name: str) -> None:
    ordeal, few, _ = ORDEALS[name]
    folder = tmp_path / name
    folder.mkdir()
    tally = ordeal(save_model(tmp_path / "model"), folder, few, 1)
    if tally.skipped:
        pytest.skip(tally.skipped)
    assert tally.cases >= 1
    assert tally.held, tally.failures


def test_what_is_not_promised_is_broken() -> None:
    tally = Tally("kills", ("whole",))
    tally.note("whole", "kill 1")
    assert tally.held
    tally.note("whole", "kill 2")
    assert tally.held
    tally.note("torn", "kill 3")
    assert not tally.held
    assert tally.failures == ["kill 3: torn"]
    assert table([tally]).splitlines()[-1] == "| kills | 3 | 2 whole, 1 torn | 1 |"
