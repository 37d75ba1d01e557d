"""All that a run needs before it has an adapter: the task, the base model, the token sequences, what measures it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from localora.lab.data.batches import Sequences, encode_examples
from localora.lab.data.example import Example, Scorer, TaskData
from localora.lab.data.load import load_task
from localora.lab.data.split import subset
from localora.lab.evaluation.likelihood import mean_loss
from localora.lab.evaluation.measure import Progress, measure_task
from localora.lab.evaluation.sandbox import Sandbox
from localora.lab.model.base import device_of, load_base_model
from localora.lab.model.dtype import ChosenDtype, choose_dtype, default_device
from localora.lab.recipe.schema import EvaluationSection, Recipe, TrainingSection
from localora.lab.training.adaptation.base import Prepared
from localora.lab.training.record import Evaluation
from localora.lifecycle.processes import decide_once

CUT_SHARE = 0.05  # of the training examples: a run with more of them cut is warned of
FEW = 20  # test items: one answer is 5 %


@dataclass
class Setup(Prepared):
    """A loaded task and base model. `validation` is for looking during training, `test` for the final numbers only.

    `questions` are the examples that `test` encodes. They and those of `validation` are drawn from all of their split:
    one that was read from several files has these one after the other.
    """

    task: TaskData
    validation: Sequences
    test: Sequences
    questions: list[Example]
    evaluation: EvaluationSection
    dtype: ChosenDtype
    sandbox: Sandbox | None = None  # None: generated code is not run

    def measure(self, model: PreTrainedModel | PeftModel, progress: Progress | None = None) -> Evaluation:
        """Loss and task score of `model` on the test split.

        Raises:
            TrainingError: the loss is not finite.
        """
        return measure_task(
            model, self.tokenizer, self.test, self.questions, self.task.scorer, self.evaluation, self.sandbox, progress
        )[0]

    def held_out_loss(self, model: torch.nn.Module) -> float:
        """Loss on validation examples, for the curve."""
        return mean_loss(model, self.validation, self.evaluation.batch_size)

    def header(self, training: TrainingSection) -> list[str]:
        """What is about to be trained on, where and in what; then what is odd about it."""
        splits = (self.train, self.validation, self.test)
        sizes = " / ".join(f"{len(s)} {name}" for s, name in zip(splits, ("train", "validation", "test"), strict=True))
        cut, longest = sum(s.cut for s in splits), max(s.longest for s in splits)
        lines = [
            f"{sizes}, {cut} cut (longest {longest} tokens), {device_of(self.model)} {self.dtype.name}, "
            f"batch {training.batch_size}",
            f"{self.dtype.name}: {self.dtype.reason}",
        ]
        if self.train.cut > CUT_SHARE * len(self.train):
            lines.append(
                f"warning: {self.train.cut} of {len(self.train)} training examples are cut to {training.max_length} "
                f"tokens (the longest has {max(self.train.whole)}); raise training.max_length"
            )
        if len(self.test) < FEW:
            lines.append(
                f"warning: with {len(self.test)} test items one answer is {1 / len(self.test):.0%}; measure on {FEW} "
                "or more (evaluation.examples, data.test_size)"
            )
        return lines


def load_setup(recipe: Recipe, dtype: ChosenDtype | None = None) -> Setup:
    """Load the data first (cheap, and the likelier to be wrong), then the model.

    Args:
        dtype: that the run had before it was interrupted; chosen from the recipe and the machine when left out.

    Raises:
        DataError, ModelError: as their loaders say.
        SandboxError: generated code is to be run, and this system cannot contain it.
    """
    task = load_task(recipe.data)
    runs_code = recipe.evaluation.allow_code_execution and task.scorer is Scorer.code
    sandbox = Sandbox() if runs_code else None
    dtype = dtype or decide_once(lambda: _dtype_of(recipe))
    model, tokenizer = load_base_model(recipe.model.name, dtype.torch)
    model.to(default_device())  # type: ignore[arg-type]
    length, sizes = recipe.training.max_length, recipe.evaluation
    questions = subset(task.test, sizes.examples, recipe.data.seed)
    shown = subset(task.validation, sizes.curve_examples, recipe.data.seed)
    return Setup(
        task=task,
        model=model,
        tokenizer=tokenizer,
        train=encode_examples(task.train, tokenizer, length),
        validation=encode_examples(shown, tokenizer, length),
        test=encode_examples(questions, tokenizer, length),
        questions=questions,
        evaluation=sizes,
        dtype=dtype,
        sandbox=sandbox,
    )


def _dtype_of(recipe: Recipe) -> ChosenDtype:
    if recipe.method.name == "full" and recipe.model.dtype == "auto":
        return ChosenDtype("float32", "every weight trains, and bfloat16 would round them first")
    return choose_dtype(recipe.model.dtype)
