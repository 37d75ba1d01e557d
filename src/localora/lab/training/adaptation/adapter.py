"""Adapters of PEFT that need nothing but to be there."""

from __future__ import annotations

from pathlib import Path

from localora.lab.training.adaptation.base import Adaptation, Trainee
from localora.lab.training.prepared import Prepared


class PlainAdapter(Adaptation):
    """Attached, trained, saved: LoRA and most of its variants."""

    def attach(self, prepared: Prepared, *, resume: bool) -> Trainee:
        return self._with_adapter(prepared, self._config())

    def save(self, prepared: Prepared, model: Trainee, to: Path) -> None:
        model.save_pretrained(str(to))
