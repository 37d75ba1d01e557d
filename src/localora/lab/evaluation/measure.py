"""What a model makes of a task: the loss of the reference answers, the score of its own, both item by item."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.data.batches import Encoded
from localora.lab.data.example import Example, Scorer
from localora.lab.evaluation.likelihood import completion_losses
from localora.lab.evaluation.sandbox import Sandbox
from localora.lab.evaluation.score import CODE_IS_OFF, evaluate_task
from localora.lab.recipe.schema import EvaluationSection
from localora.lab.training.record import Evaluation, Items
from localora.lab.training.trainer import finite

Progress = Callable[[int, int, str], None]  # (done, total, of what)


def measure_task(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    questions: Sequence[Example],
    scorer: Scorer,
    evaluation: EvaluationSection,
    sandbox: Sandbox | None = None,
    progress: Progress | None = None,
) -> tuple[Evaluation, list[str]]:
    """Loss and task score of `model` on `questions`, which `encoded` holds as tokens; without a sandbox no code is run.

    Returns:
        What was measured, and the model's answers, in order; without a score there are none.

    Raises:
        DataError: no questions.
        TrainingError: the loss is not finite.
    """
    start = time.perf_counter()
    count, say = len(encoded), progress or (lambda done, total, what: None)
    say(0, count, "losses")
    sums, tokens = completion_losses(
        model, encoded, evaluation.batch_size, lambda done, total: say(done, total, "losses")
    )
    loss = finite(sum(sums) / sum(tokens), "on test examples")
    result, answers = Evaluation(loss=loss, examples=count, items=Items.of(questions, sums, tokens)), list[str]()
    if scorer is Scorer.code and sandbox is None:
        result.score_name = CODE_IS_OFF
    elif scorer is not Scorer.none:
        say(0, count, "answers")
        score = evaluate_task(
            cast(PreTrainedModel, model),
            tokenizer,
            questions,
            scorer,
            batch_size=evaluation.batch_size,
            max_new_tokens=evaluation.max_new_tokens,
            sandbox=sandbox,
            progress=lambda done, total: say(done, total, "answers"),
        )
        result.score_name, result.score, result.score_examples = score.name, score.value, len(score.items)
        result.right, answers = score.items, score.outputs
    result.seconds = time.perf_counter() - start
    return result, answers
