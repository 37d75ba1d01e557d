"""Greedy completions of many prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from localora.lab.data.batches import prompt_ids
from localora.lab.data.example import Example
from localora.lab.model.base import device_of
from localora.lifecycle.passes import evaluating


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int,
    max_new_tokens: int,
    stop_pattern: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """The greedy completion of each example, in the given order, without EOS.

    Batches hold prompts of similar length, left-padded. A row stops at EOS, or once its generated text
    matches the regular expression `stop_pattern`. `progress(done, total)` is called after each batch.
    """
    prompts = [prompt_ids(example, tokenizer) for example in examples]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_eos_ids(model, tokenizer),
    )
    device = device_of(model)
    texts = [""] * len(examples)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            padded = tokenizer.pad({"input_ids": [prompts[i] for i in rows]}, padding_side="left", return_tensors="pt")
            batch = {name: tensor.to(device) for name, tensor in padded.items()}
            prompt_length = batch["input_ids"].shape[1]
            stopping = StoppingCriteriaList()
            if stop_pattern is not None:
                stopping.append(_TextMatches(stop_pattern, tokenizer, prompt_length))
            output = model.generate(**batch, generation_config=config, stopping_criteria=stopping)  # type: ignore[operator]  # of GenerationMixin
            written = tokenizer.batch_decode(output[:, prompt_length:], skip_special_tokens=True)
            for i, text in zip(rows, written, strict=True):
                texts[i] = text
            if progress is not None:
                progress(start + len(rows), len(order))
    return texts


class _TextMatches(StoppingCriteria):
    """Ends a row once its generated text matches a pattern; generate then fills it with padding."""

    def __init__(self, pattern: str, tokenizer: PreTrainedTokenizerBase, prompt_length: int) -> None:
        self.pattern = re.compile(pattern)
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """`(rows,)` bool."""
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_length :], skip_special_tokens=True)
        matches = [self.pattern.search(text) is not None for text in texts]
        return torch.tensor(matches, device=input_ids.device)


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's EOS, which training appends, and those the model was published with."""
    published = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = {tokenizer.eos_token_id} | set(published if isinstance(published, list) else [published])
    return sorted(i for i in ids if i is not None)
