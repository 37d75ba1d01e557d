"""localora's own methods: placed at train begin, re-placed on schedule."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from localora import LocalizationCallback, adapter_size
from localora.lab.progress import Reporter
from localora.lab.recipe.methods import LocalizedMethod
from localora.lab.training.adaptation.base import Adaptation, Prepared, Trainee
from localora.lab.training.record import RunRecord


class LocalizedAdapter(Adaptation):
    """G-LoRA, CPS-LoRA and the hybrid."""

    def attach(self, prepared: Prepared, *, resume: bool) -> Trainee:
        self._model = super().attach(prepared, resume=resume)
        return self._model

    def callbacks(self, record: RunRecord, reporter: Reporter) -> list[TrainerCallback]:
        method = self.recipe.method
        assert isinstance(method, LocalizedMethod)
        self._localization = _Told(reporter, steps=method.calibration_steps)
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


class _Told(LocalizationCallback):
    """Says when adapters are placed, and when an event of their schedule takes place."""

    def __init__(self, reporter: Reporter, steps: int) -> None:
        super().__init__(steps)
        self.reporter = reporter

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with self.reporter.phase("placing", "batch", brief=state.global_step > 0) as phase:
            self.progress = phase.tell
            super().on_train_begin(args, state, control, **kwargs)
            phase.result = "; ".join(report.summary()[1] for report in self.reports.values()) or "nothing to place"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = any(state.global_step in repartitioner.due for repartitioner in self.repartitioners.values())
        with self.reporter.phase(f"event at step {state.global_step}") if due else nullcontext():
            super().on_step_end(args, state, control, **kwargs)
