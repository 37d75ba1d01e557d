"""Full fine-tuning: the model itself trains."""

from __future__ import annotations

from pathlib import Path

from localora.lab.model.targets import resolve_targets
from localora.lab.training.adaptation.base import Adaptation, Prepared, Trainee, unfit_methods_named


class FullFineTuning(Adaptation):
    """No adapter; every parameter trains, in float32 whatever the base was loaded in, as PEFT's adapters do.

    In half precision most of Adam's steps would be lost to rounding.
    """

    def attach(self, prepared: Prepared, *, resume: bool) -> Trainee:
        with unfit_methods_named():
            self._targets = resolve_targets(prepared.model, self.recipe.method.target_modules)
        model = prepared.model.float()
        model.requires_grad_(True)
        return model

    def lora_same_r(self, model: Trainee) -> int:
        return sum(self.recipe.method.r * (target.m + target.n) for target in self._targets)

    @property
    def result(self) -> Path:
        return self.folder.model

    def save(self, prepared: Prepared, model: Trainee, to: Path) -> None:
        super().save(prepared, model, to)
        prepared.tokenizer.save_pretrained(str(to))
