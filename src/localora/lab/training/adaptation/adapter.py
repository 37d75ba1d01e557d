"""Adapters of PEFT that need nothing but to be there."""

from __future__ import annotations

from localora.lab.training.adaptation.base import Adaptation, Trainee
from localora.lab.training.setup import Setup


class PlainAdapter(Adaptation):
    """Attached, trained, saved: LoRA and most of its variants."""

    def attach(self, setup: Setup, *, resume: bool) -> Trainee:
        return self._with_adapter(setup, self._config())

    def save(self, setup: Setup, model: Trainee) -> None:
        model.save_pretrained(str(self.folder.adapter))
