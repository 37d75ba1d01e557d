from __future__ import annotations

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from localora.lab.data.batches import IGNORED, Collator, Encoded, encode_examples, prompt_ids
from localora.lab.data.example import DataError, Example

EOS = 1


def tokenise(example: Example, tokenizer, max_length: int) -> Encoded:
    return encode_examples([example], tokenizer, max_length)[0]


def trained_text(encoded, tokenizer) -> str:
    ids = [i for i, label in zip(encoded["input_ids"], encoded["labels"], strict=True) if label != IGNORED]
    assert ids == [label for label in encoded["labels"] if label != IGNORED]
    return tokenizer.decode(ids)


def test_the_prompt_is_masked_and_eos_ends_the_completion(tokenizer):
    encoded = tokenise(Example("a", "2+2=", " 4"), tokenizer, 100)
    assert tokenizer.decode(encoded["input_ids"]) == "2+2= 4</s>"
    assert encoded["labels"][:4] == [IGNORED] * 4
    assert encoded["labels"][4:] == encoded["input_ids"][4:]
    assert encoded["labels"][-1] == EOS
    assert len(encoded["labels"]) == 4 + 2 + 1


def test_a_cut_takes_the_prompts_start_and_leaves_some_of_it(tokenizer):
    example = Example("long-7", "0123456789", "abcde")
    assert tokenizer.decode(tokenise(example, tokenizer, 9)["input_ids"]) == "789abcde</s>"
    assert tokenizer.decode(tokenise(example, tokenizer, 7)["input_ids"]) == "9abcde</s>"
    with pytest.raises(
        DataError, match=r"'long-7' has 16 tokens, 10 of them prompt: a cut to max_length 6 .*raise max_length or drop"
    ):
        tokenise(example, tokenizer, 6)


def test_a_text_without_a_prompt_is_cut_at_its_end(tokenizer):
    text = tokenise(Example("a", "", "0123456789"), tokenizer, 4)
    assert tokenizer.decode(text["input_ids"]) == trained_text(text, tokenizer) == "0123"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert tokenizer.decode(tokenise(Example("a", "", "0123456789"), tokenizer, 4)["input_ids"]) == "<s>012"
    with pytest.raises(DataError, match=r"'sum-7' has no token to train on within max_length 1 .*raise max_length or"):
        tokenise(Example("sum-7", "", "4"), tokenizer, 1)


def test_a_cut_keeps_bos(tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    example = Example("long-7", "0123456789", "abcde")
    encoded = tokenise(example, tokenizer, 9)
    assert tokenizer.decode(encoded["input_ids"]) == "<s>89abcde</s>"
    assert trained_text(encoded, tokenizer) == "abcde</s>"
    assert tokenizer.decode(tokenise(example, tokenizer, 8)["input_ids"]) == "<s>9abcde</s>"
    with pytest.raises(DataError, match="'long-7' has 17 tokens, 11 of them prompt: a cut to max_length 7 would"):
        tokenise(example, tokenizer, 7)


def test_a_cut_keeps_the_bos_that_a_chat_template_writes(tokenizer):
    tokenizer.chat_template = "<s>" + tokenizer.chat_template
    messages = ({"role": "user", "content": "0123456789"}, {"role": "assistant", "content": "A"})
    whole = tokenise(Example("c", "", "", messages=messages), tokenizer, 100)
    assert tokenizer.decode(whole["input_ids"]) == "<s><user>0123456789</s><assistant>A</s>"
    short = tokenise(Example("c", "", "", messages=messages), tokenizer, len(whole["input_ids"]) - 8)
    assert tokenizer.decode(short["input_ids"]) == "<s>23456789</s><assistant>A</s>"
    assert trained_text(short, tokenizer) == "A</s>"


def test_sequences_tell_how_many_were_cut_and_how_long_they_are(tokenizer):
    examples = [Example("a", "01234", "abc"), Example("b", "0", "a"), Example("c", "0123456", "abcd")]
    encoded = encode_examples(examples, tokenizer, 8)  # of 9, 3 and 12 tokens
    assert (encoded.cut, encoded.longest, encoded.whole) == (2, 8, [9, 3, 12])
    assert encoded == [tokenise(example, tokenizer, 8) for example in examples]
    whole = encode_examples(examples, tokenizer, 12)
    assert (whole.cut, whole.longest) == (0, 12)


def test_no_examples(tokenizer):
    with pytest.raises(DataError, match="no examples"):
        encode_examples([], tokenizer, 10)


def test_bos_is_kept_where_the_tokenizer_writes_it(tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    encoded = tokenise(Example("a", "x", "y"), tokenizer, 100)
    assert tokenizer.decode(encoded["input_ids"]) == "<s>xy</s>"
    assert tokenizer.decode(prompt_ids(Example("a", "x", "y"), tokenizer)) == "<s>x"


def test_every_assistant_turn_of_a_chat_is_trained_on(tokenizer):
    turns = [("system", "S"), ("user", "U1"), ("assistant", "A1"), ("user", "U2"), ("assistant", "A2")]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    example = Example("c", "", "", messages=messages)
    encoded = tokenise(example, tokenizer, 200)
    whole = "<system>S</s><user>U1</s><assistant>A1</s><user>U2</s><assistant>A2</s>"
    assert tokenizer.decode(encoded["input_ids"]) == whole
    assert trained_text(encoded, tokenizer) == "A1</s>A2</s>"
    assert tokenizer.decode(prompt_ids(example, tokenizer)) == whole.removesuffix("A2</s>")


def test_a_chat_without_a_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    messages = ({"role": "user", "content": "U"}, {"role": "assistant", "content": "A"})
    with pytest.raises(DataError, match=r"'c' is a chat.*no chat template"):
        tokenise(Example("c", "", "", messages=messages), tokenizer, 100)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    messages = tuple({"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant"))
    with pytest.raises(DataError, match="keep one assistant turn"):
        tokenise(Example("c", "", "", messages=messages), tokenizer, 100)


def test_collator_pads_to_the_longest():
    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = Collator(pad_id=9)(rows)
    assert torch.equal(batch["input_ids"], torch.tensor([[5, 6, 7], [8, 9, 9]]))
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert torch.equal(batch["labels"], torch.tensor([[IGNORED, 6, 7], [8, IGNORED, IGNORED]]))
