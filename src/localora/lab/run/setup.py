"""All that a run needs before it has an adapter: the task, the base model, the token sequences, what measures it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.data.batches import Encoded, encode_examples
from localora.lab.data.example import Example, Scorer, TaskData
from localora.lab.data.load import load_task
from localora.lab.data.split import subset
from localora.lab.evaluation.likelihood import completion_losses, mean_loss
from localora.lab.evaluation.sandbox import Sandbox
from localora.lab.evaluation.score import CODE_IS_OFF, evaluate_task
from localora.lab.model.base import load_base_model
from localora.lab.model.dtype import ChosenDtype, choose_dtype, default_device
from localora.lab.recipe.schema import EvaluationSection, Recipe
from localora.lab.training.prepared import Prepared
from localora.lab.training.record import Evaluation, Items
from localora.lab.training.trainer import finite
from localora.lifecycle.processes import decide_once

Progress = Callable[[int, int], None]  # (done, total)


@dataclass
class Setup(Prepared):
    """A loaded task and base model. `validation` is for looking during training, `test` for the final numbers only.

    `questions` are the examples that `test` encodes. They and those of `validation` are drawn from all of their split:
    one that was read from several files has these one after the other.
    """

    task: TaskData
    validation: list[Encoded]
    test: list[Encoded]
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
            model,
            self.tokenizer,
            self.test,
            self.questions,
            self.task.scorer,
            self.evaluation,
            self.sandbox,
            progress,
        )

    def held_out_loss(self, model: torch.nn.Module) -> float:
        """Loss on validation examples, for the curve."""
        return mean_loss(model, self.validation, self.evaluation.batch_size)


def measure_task(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    questions: Sequence[Example],
    scorer: Scorer,
    evaluation: EvaluationSection,
    sandbox: Sandbox | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Loss and task score of `model` on `questions`, which `encoded` holds as tokens; without a sandbox no code is run.

    Raises:
        TrainingError: the loss is not finite.
    """
    start = time.perf_counter()
    sums, tokens = completion_losses(model, encoded, evaluation.batch_size)
    loss = finite(sum(sums) / sum(tokens), "on test examples")
    result = Evaluation(loss=loss, examples=len(encoded), items=Items.of(questions, sums, tokens))
    if scorer is Scorer.code and sandbox is None:
        result.score_name = CODE_IS_OFF
    elif scorer is not Scorer.none:
        score = evaluate_task(
            cast(PreTrainedModel, model),
            tokenizer,
            questions,
            scorer,
            batch_size=evaluation.batch_size,
            max_new_tokens=evaluation.max_new_tokens,
            sandbox=sandbox,
            progress=progress,
        )
        result.score_name, result.score, result.score_examples = score.name, score.value, score.count
        result.right = score.items
    result.seconds = time.perf_counter() - start
    return result


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
