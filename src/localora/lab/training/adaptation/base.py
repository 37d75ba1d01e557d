"""What a run asks of a method; the answer of adapters that need nothing but to be there, and of full fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from localora.lab.data.batches import Sequences
from localora.lab.progress import Reporter
from localora.lab.recipe.schema import Recipe, RecipeError
from localora.lab.training.folder import RunFolder
from localora.lab.training.record import RunRecord

Trainee = PreTrainedModel | PeftModel


@dataclass
class Prepared:
    """What a method needs to begin: a base model, and the examples to train it on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: Sequences

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        assert pad is not None  # load_base_model sets one
        return int(pad)


class Adaptation:
    """One method in one run: `attach` once, train under its `callbacks`, `note` what it did, `save`."""

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self.recipe, self.folder = recipe, folder

    def attach(self, prepared: Prepared, *, resume: bool) -> Trainee:
        """Make `prepared.model` trainable. `resume`: the Trainer will load a checkpoint over the trained weights.

        Raises:
            RecipeError: the method does not fit the model.
        """
        return self._with_adapter(prepared, self._config())

    @property
    def result(self) -> Path:
        """Where in the run's folder the result belongs."""
        return self.folder.adapter

    def callbacks(self, record: RunRecord, reporter: Reporter) -> list[TrainerCallback]:
        """What must act during training; `record` holds what an interrupted run did so far."""
        return []

    def note(self, record: RunRecord) -> None:
        """Write into the record what the method did in training so far."""

    def save(self, prepared: Prepared, model: Trainee, to: Path) -> None:
        """Write the result into the folder `to`, such that it gives these logits when it is loaded."""
        model.save_pretrained(str(to))

    def _config(self) -> PeftConfig:
        training = self.recipe.training
        with unfit_methods_named():
            return self.recipe.method.peft_config(training.seed, training.steps)

    def _with_adapter(self, prepared: Prepared, config: PeftConfig) -> PeftModel:
        with unfit_methods_named():
            model = get_peft_model(prepared.model, config)
        assert isinstance(model, PeftModel)
        return model


@contextmanager
def unfit_methods_named() -> Iterator[None]:
    """A method that contradicts itself, or does not fit the model, is an error of the recipe."""
    try:
        yield
    except ValueError as error:
        raise RecipeError("method", str(error)) from error


class FullFineTuning(Adaptation):
    """No adapter; every parameter trains, in float32 whatever the base was loaded in, as PEFT's adapters do.

    In half precision most of Adam's steps would be lost to rounding.
    """

    def attach(self, prepared: Prepared, *, resume: bool) -> Trainee:
        model = prepared.model.float()
        model.requires_grad_(True)
        return model

    @property
    def result(self) -> Path:
        return self.folder.model

    def save(self, prepared: Prepared, model: Trainee, to: Path) -> None:
        super().save(prepared, model, to)
        prepared.tokenizer.save_pretrained(str(to))
