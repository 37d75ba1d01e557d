"""The llm-adapters protocol: the choices stand numbered in the prompt, and the model writes which one is right.

After the commonsense protocol of LLM-Adapters (Hu et al., EMNLP 2023), in our words: the answer words are theirs
(true/false, solution1/2, ending1..4, option1/2, answer1..n), the sentences are not. A model is right when the first
answer word in what it writes is the right one. Prompts show all choices, so its numbers are not comparable with those
of the likelihood protocol, nor (the wording differs) with published ones to the point.
"""

from __future__ import annotations

from localora.lab.data.example import Example
from localora.lab.data.published.registry import PublishedTask

_ASK = {
    "solution": "Which solution reaches this goal?",
    "ending": "Which ending continues this text?",
    "option": "Which option belongs in the blank of this sentence?",
    "answer": "Which answer to this question is right?",
}


def adapters_example(task: PublishedTask, example: Example) -> Example:
    """The multiple-choice `example` in this form; its `choices` become the answer words."""
    question = example.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    if task.option:
        words = tuple(f"{task.option}{number}" for number in range(1, len(example.choices) + 1))
        listed = [f"{word}: {choice.strip()}" for word, choice in zip(words, example.choices, strict=True)]
        asked = "\n".join([_ASK[task.option], question, *listed])
    else:  # its choices are the words
        words = tuple(choice.strip() for choice in example.choices)
        asked = f"Is the answer to this question {' or '.join(reversed(words))}?\n{question}"
    assert example.answer_index is not None
    right = words[example.answer_index]
    return Example(
        example.id,
        f"### Instruction:\n{asked}\nReply with one of: {', '.join(words)}\n\n### Response:",
        f"\nThe right one is {right}",
        answer=right,
        choices=words,
        answer_index=example.answer_index,
    )
