"""What a method needs to begin: a base model, and the examples to train it on."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.data.batches import Sequences


@dataclass
class Prepared:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: Sequences

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        assert pad is not None  # load_base_model sets one
        return int(pad)
