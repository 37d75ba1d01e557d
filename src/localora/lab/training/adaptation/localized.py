"""localora's own methods: placed at train begin, re-placed on schedule."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerCallback

from localora import LocalizationCallback, adapter_size
from localora.lab.recipe.schema import LocalizedMethod
from localora.lab.training.adaptation.base import Adaptation, Trainee
from localora.lab.training.prepared import Prepared
from localora.lab.training.record import RunRecord


class LocalizedAdapter(Adaptation):
    """G-LoRA, CPS-LoRA and the hybrid."""

    def attach(self, prepared: Prepared, *, resume: bool) -> Trainee:
        self._model = self._with_adapter(prepared, self._config())
        return self._model

    def callbacks(self, record: RunRecord) -> list[TrainerCallback]:
        method = self.recipe.method
        assert isinstance(method, LocalizedMethod)
        self._localization = LocalizationCallback(steps=method.calibration_steps)
        self._earlier_events = record.repartitions
        return [self._localization]

    def note(self, record: RunRecord) -> None:
        for report in self._localization.reports.values():
            record.placement = report.to_dict()
            record.seconds["calibrate"] = report.seconds
        events = [event.to_dict() for r in self._localization.repartitioners.values() for event in r.events]
        record.repartitions = self._earlier_events + events
        size = adapter_size(self._model)
        record.parameters.stored, record.parameters.rank = size.stored, size.rank

    def save(self, prepared: Prepared, model: Trainee, to: Path) -> None:
        model.save_pretrained(str(to))
