"""A run that was stopped and resumed is the run that was not: every method, with events and without, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from placed_trainer import logged, losses, steps, trainer

from localora.lifecycle import callback as callback_module

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "options", "stops"),
    [
        ("g-lora", {"repartition": []}, {3: []}),
        ("cps-lora", {"repartition": []}, {3: []}),
        ("hybrid", {"repartition": []}, {3: []}),
        ("cps-lora", {}, {2: [3, 8], 3: [8], 7: [8], 8: []}),
        ("cps-lora", {"frozen": "merged"}, {2: [3, 8], 5: [8], 9: []}),
        ("cps-lora", {"frozen_rank": 14, "repartition_place": "random"}, {5: [8], 8: []}),
        ("g-lora", {}, {5: [8]}),
        ("hybrid", {"repartition_place": "kept"}, {5: [8]}),
        ("lora-by-share", {}, {3: [8], 5: [8]}),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_run_to_the_last_bit(
    method: str, options: dict[str, Any], stops: dict[int, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events after steps 3 and 8; checkpoints before them, between them (in the second epoch too), and right at one."""
    options = {"repartition": [0.25, 0.6], "dropout": 0.1, **options}
    scheduled = [3, 8] if options["repartition"] else []
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole, localization = trainer(tmp_path / "whole", method, arguments=saving, **options)
    whole.train()
    assert steps(localization) == scheduled
    expected = whole.model.state_dict()
    frozen = "folded" if options.get("frozen") == "merged" else "frozen"
    assert any(f"localized_{frozen}_A" in key for key in expected) == bool(scheduled)
    checkpoints = sorted(path.name for path in (tmp_path / "whole" / "checkpoint-5").iterdir())
    assert not [name for name in checkpoints if "localora" in name]  # the adapter and the optimizer are enough
    monkeypatch.setattr(callback_module, "calibrate", lambda *_, **__: pytest.fail("placed again"))
    for stopped_at, events in stops.items():
        checkpoint = tmp_path / "whole" / f"checkpoint-{stopped_at}"
        resumed, localization = trainer(tmp_path / f"resumed-{stopped_at}", method, **options)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert steps(localization) == events
        assert losses(resumed) == losses(whole)
        assert logged(resumed) == logged(whole)
        found = resumed.model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
