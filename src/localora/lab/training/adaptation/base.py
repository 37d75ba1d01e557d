"""What a run asks of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, TrainerCallback

from localora.lab.progress import Narrator
from localora.lab.recipe.schema import Recipe, RecipeError
from localora.lab.training.adapter import adapter_config, lora_parameters
from localora.lab.training.folder import RunFolder
from localora.lab.training.prepared import Prepared
from localora.lab.training.record import RunRecord

Trainee = PreTrainedModel | PeftModel


class Adaptation(ABC):
    """One method in one run: `attach` once, train under its `callbacks`, `note` what it did, `save`."""

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self.recipe, self.folder = recipe, folder

    @abstractmethod
    def attach(self, prepared: Prepared, *, resume: bool) -> Trainee:
        """Make `prepared.model` trainable. `resume`: the Trainer will load a checkpoint over the trained weights.

        Raises:
            RecipeError: the method does not fit the model.
        """

    def lora_same_r(self, model: Trainee) -> int:
        """Trainable parameters of LoRA at the recipe's r on the same matrices of the attached model."""
        return lora_parameters(model, self.recipe.method.r)

    @property
    def result(self) -> Path:
        """Where in the run's folder the result belongs."""
        return self.folder.adapter

    def callbacks(self, record: RunRecord, narrator: Narrator) -> list[TrainerCallback]:
        """What must act during training; `record` holds what an interrupted run did so far."""
        return []

    def note(self, record: RunRecord) -> None:  # noqa: B027 (most have nothing to add)
        """Write into the record what the method did in training so far."""

    @abstractmethod
    def save(self, prepared: Prepared, model: Trainee, to: Path) -> None:
        """Write the result into the folder `to`, such that it gives these logits when it is loaded."""

    def _config(self) -> PeftConfig:
        training = self.recipe.training
        try:
            return adapter_config(self.recipe.method, training.seed, training.steps)
        except ValueError as error:
            raise RecipeError("method", [str(error)]) from error

    def _with_adapter(self, prepared: Prepared, config: PeftConfig) -> PeftModel:
        try:
            model = get_peft_model(prepared.model, config)
        except ValueError as error:
            raise RecipeError("method", [str(error)]) from error
        assert isinstance(model, PeftModel)
        return model
